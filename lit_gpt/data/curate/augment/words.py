"""Lists English contractions, common misspellings and neighboring keys of a keyboard."""

_NOT = ("are", "could", "did", "do", "does", "had", "has", "have", "is", "might", "must", "need", "should", "was")
_NOT += ("were", "would")
CONTRACTED = {f"{verb} not": f"{verb}n't" for verb in _NOT} | {"cannot": "can't", "will not": "won't"}
"""Written out -> contracted. Where a contraction has two meanings ("he's": is, has), it is given the commoner one."""
CONTRACTED |= {f"{who} {verb}": f"{who}'{end}" for who in ("he", "she", "it", "that", "there", "what", "who", "where")
               for verb, end in (("is", "s"), ("will", "ll"))}  # fmt: skip
CONTRACTED |= {f"{who} {verb}": f"{who}'{end}" for who in ("you", "we", "they")
               for verb, end in (("are", "re"), ("will", "ll"), ("have", "ve"))}  # fmt: skip
CONTRACTED |= {"i am": "i'm", "i will": "i'll", "i have": "i've", "let us": "let's"}
CONTRACTED |= {f"{verb} have": f"{verb}'ve" for verb in ("could", "should", "would", "might", "must")}
EXPANDED = {short: long for long, short in CONTRACTED.items()}
"""Contracted -> written out."""

MISSPELLED = {
    "accommodate": ("accomodate",),
    "achieve": ("acheive",),
    "across": ("accross",),
    "already": ("allready", "aready"),
    "although": ("altough",),
    "always": ("allways",),
    "apparently": ("apparantly",),
    "appearance": ("appearence",),
    "argument": ("arguement",),
    "available": ("availible", "avaliable"),
    "because": ("becuase", "becasue"),
    "beginning": ("begining",),
    "believe": ("beleive",),
    "between": ("beetween",),
    "business": ("buisness", "bussiness"),
    "calendar": ("calender",),
    "category": ("catagory",),
    "committee": ("comittee",),
    "completely": ("completly",),
    "conscious": ("concious",),
    "country": ("contry",),
    "decision": ("desicion",),
    "definitely": ("definately", "definitly"),
    "describe": ("discribe",),
    "description": ("discription",),
    "develop": ("develope",),
    "difference": ("diffrence",),
    "different": ("diffrent", "diferent"),
    "disappear": ("dissapear",),
    "environment": ("enviroment",),
    "equipment": ("equiptment",),
    "especially": ("especialy",),
    "example": ("exampel",),
    "existence": ("existance",),
    "experience": ("experiance",),
    "explain": ("explane",),
    "explanation": ("explaination",),
    "familiar": ("familar",),
    "finally": ("finaly",),
    "following": ("folowing",),
    "foreign": ("foriegn",),
    "friend": ("freind",),
    "generate": ("genarate",),
    "government": ("goverment",),
    "grammar": ("grammer",),
    "height": ("heigth",),
    "immediately": ("immediatly",),
    "important": ("importent", "improtant"),
    "independent": ("independant",),
    "information": ("infomation",),
    "intelligence": ("inteligence",),
    "interesting": ("intresting",),
    "knowledge": ("knowlege",),
    "language": ("langauge", "languge"),
    "length": ("lenght",),
    "library": ("libary",),
    "maintenance": ("maintainance",),
    "necessary": ("neccessary", "necesary"),
    "occasion": ("occassion",),
    "occurred": ("occured",),
    "opinion": ("opinon",),
    "opposite": ("oposite",),
    "particular": ("particuler",),
    "people": ("poeple",),
    "perform": ("preform",),
    "possible": ("posible",),
    "prefer": ("perfer",),
    "probably": ("probaly",),
    "problem": ("probelm",),
    "question": ("quesiton", "queston"),
    "receive": ("recieve",),
    "recommend": ("reccomend", "recomend"),
    "relevant": ("relevent",),
    "remember": ("rember",),
    "response": ("responce",),
    "result": ("reuslt",),
    "scientist": ("sceintist",),
    "sentence": ("sentance",),
    "separate": ("seperate",),
    "several": ("serveral",),
    "similar": ("similiar",),
    "statement": ("statment",),
    "successful": ("succesful",),
    "suggest": ("sugest",),
    "summarize": ("sumarize",),
    "surprise": ("suprise",),
    "their": ("thier",),
    "therefore": ("therfore",),
    "through": ("trough",),
    "together": ("togehter",),
    "tomorrow": ("tommorow",),
    "translate": ("tranlsate",),
    "truly": ("truely",),
    "unfortunately": ("unfortunatly",),
    "until": ("untill",),
    "usually": ("usualy",),
    "weather": ("wether",),
    "weird": ("wierd",),
    "which": ("wich",),
    "whether": ("wheter",),
    "writing": ("writting",),
    "written": ("writen",),
}
"""Correct spelling -> common misspellings."""

_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
"""Rows of letter keys; each lies half a key to the right of the one above it."""
NEIGHBORS = {
    key: "".join(
        row[at]
        for r, row in enumerate(_ROWS)
        for at in {-1: (c, c + 1), 0: (c - 1, c + 1), 1: (c - 1, c)}.get(r - line, ())
        if 0 <= at < len(row)
    )
    for line, keys in enumerate(_ROWS)
    for c, key in enumerate(keys)
}
"""Letter -> the letters of the keys next to its own."""
