"""Make the demo's data set: train.json and held_out.json, orders in one English sentence and their JSON records.

Item, name and city are to be copied from the sentence, the count is a number word to be turned into digits, and the
weekday is to be shortened to three letters. What the two files share, and what they don't:

- Both use the same instruction, sentence templates, number words and weekdays; no sentence is in both.
- No held-out row has an item and a name, an item and a city, or a name and a city that a training row has together.
- A quarter of the held-out rows use values from the training lists only. Each other quarter has one value, the item,
  the name or the city, from a list that training rows never use.

The output is the same on every run of `python demo/make_data.py`.
"""

import json
import random
from itertools import combinations
from pathlib import Path

INSTRUCTION = "Write the order as a JSON record."
TRAIN_ROWS, HELD_OUT_ROWS, SEED = 400, 60, 7

TEMPLATES = """\
Please send {count} {item} to {name} in {city} on {day}.
{name} from {city} would like {count} {item}, delivered on {day}.
On {day} we have to bring {count} {item} to {city} for {name}.
{count} {item} should reach {name} in {city} by {day}.
Hello, this is {name}. Could you drop off {count} {item} in {city} on {day}?
By {day}, {name} needs {count} {item} at the shop in {city}.
Our customer in {city}, {name}, has ordered {count} {item} for {day}.
The van leaves for {city} on {day} with {count} {item} for {name}.
Can {name} have {count} {item} in {city} by {day}?
Put {name} down for {count} {item}, to arrive in {city} on {day}.
{day} is fine for {name}, who is waiting in {city} for {count} {item}.
There is a new order from {city}: {count} {item} for {name}, due on {day}.
I promised {name} {count} {item}, so ship them to {city} by {day}.
Next {day}, a courier will take {count} {item} to {name} in {city}.
We owe {name} {count} {item}, and the {city} office expects them on {day}.
{city} is where {name} will be waiting on {day} for {count} {item}.
{name} called from {city} and asked for {count} {item} by {day}.
Pack {count} {item} for the {day} trip to {city} and hand them to {name}.""".splitlines()

Order = dict[str, str]


def words(text: str) -> list[str]:
    """Returns the values in a comma-separated list."""
    return text.split(",")


def items(kinds: str, things: str) -> list[str]:
    """Returns a list to draw items from: half of them are a thing alone, half of them a thing with its kind."""
    plain = words(things) * len(words(kinds))
    return plain + [f"{kind} {thing}" for kind in words(kinds) for thing in words(things)]


COUNTS = {word: n for n, word in enumerate(words("two,three,four,five,six,seven,eight,nine,ten,eleven,twelve"), 2)}
DAYS = words("Monday,Tuesday,Wednesday,Thursday,Friday,Saturday,Sunday")
SEEN = {
    "item": items(
        "black,blue,brown,cheap,green,grey,large,new,old,pink,plain,red,small,white,yellow",
        "bags,balloons,bells,belts,benches,blankets,books,boots,bottles,bowls,boxes,brushes,buttons,cables,cameras,"
        "candles,caps,cards,carpets,chairs,clocks,coats,combs,cups,curtains,cushions,desks,dresses,fans,flags,forks,"
        "frames,gloves,guitars,hammers,helmets,jackets,jars,kettles,kites,knives,ladders,lamps,magnets,maps,masks,mats,"
        "mirrors,mugs,nets,notebooks,ovens,pans,pencils,phones,pianos,pillows,pipes,plates,posters,pots,printers,"
        "puppets,radios,ribbons,ropes,rugs,scooters,shelves,shirts,shovels,sofas,spoons,statues,suitcases,tables,tents,"
        "tiles,toasters,towels,toys,trumpets,umbrellas,vases,violins,wallets,wheels,whistles,windows",
    ),
    "name": words(
        "Adam,Agnes,Ahmed,Alice,Andre,Anton,Astrid,Bianca,Boris,Bruno,Camille,Carmen,Cecilia,Clara,Daniel,Dmitri,Edith,"
        "Elena,Emeka,Emma,Farah,Felix,Frank,Georgia,Grace,Hana,Harold,Hugo,Ibrahim,Ines,Ingrid,Ivan,Jamal,Joao,Julia,"
        "Karim,Katya,Kenji,Kofi,Laura,Leon,Lucia,Marco,Maria,Matteo,Mei,Miriam,Nadia,Nikolai,Noah,Olga,Oscar,Paula,"
        "Pedro,Peter,Priya,Quentin,Rachel,Ravi,Rosa,Salma,Samuel,Sofia,Sven,Tamara,Tomas,Ursula,Valentina,Victor,Walter,"
        "Wendy,Xavier,Yuki,Zainab"
    ),
    "city": words(
        "Accra,Adelaide,Amman,Athens,Atlanta,Baghdad,Barcelona,Beirut,Berlin,Bogota,Boston,Budapest,Cairo,Calgary,"
        "Cardiff,Casablanca,Chicago,Dakar,Dallas,Delhi,Denver,Dresden,Dublin,Edinburgh,Florence,Geneva,Glasgow,Hamburg,"
        "Hanoi,Havana,Helsinki,Houston,Istanbul,Kigali,Lagos,Leeds,Lima,Lisbon,London,Lyon,Madrid,Manila,Marseille,"
        "Miami,Milan,Moscow,Mumbai,Nairobi,New York,Osaka,Oslo,Ottawa,Paris,Perth,Phoenix,Prague,Quito,Riga,Rome,"
        "San Jose,Santiago,Seoul,Shanghai,Singapore,Sydney,Tokyo,Toronto,Tunis,Utrecht,Vancouver,Venice,Vienna,"
        "Warsaw,Wellington"
    ),
}
UNSEEN = {
    "item": items("golden,purple,spare", "baskets,buckets,drums,hats,keys,mattresses,scarves,stools,trays"),
    "name": words("Amina,Diego,Erik,Fatima,Greta,Henry,Lena,Martin,Naomi,Ruth,Simon,Yusuf"),
    "city": words("Bangkok,Brussels,Cape Town,Jakarta,Kyoto,Montreal,Munich,Porto,Seattle,Stockholm,Tehran,Zurich"),
}


def draw(rng: random.Random, pool: dict[str, list[str]]) -> Order:
    """Returns one random order, with its values as they appear in the sentence."""
    order = {field: rng.choice(values) for field, values in pool.items()}
    return {"item": order["item"], "count": rng.choice(list(COUNTS)), **order, "day": rng.choice(DAYS)}


def pairs(order: Order) -> set[tuple[str, str]]:
    """Returns the pairs among an order's item, name and city."""
    return set(combinations((order["item"], order["name"], order["city"]), 2))


def make_rows(rng: random.Random, orders: list[Order]) -> list[dict[str, str]]:
    """Returns the orders as rows of the Alpaca schema, in random order; all templates are used equally often."""
    rows = []
    for i, order in enumerate(orders):
        sentence = TEMPLATES[i % len(TEMPLATES)].format(**order)
        record = {**order, "count": COUNTS[order["count"]], "day": order["day"][:3]}
        output = json.dumps(record, separators=(",", ":"))
        rows.append({"instruction": INSTRUCTION, "input": sentence[0].upper() + sentence[1:], "output": output})
    return rng.sample(rows, len(rows))


def main() -> None:
    """Writes both files next to this script."""
    rng = random.Random(SEED)
    train = [draw(rng, SEEN) for _ in range(TRAIN_ROWS)]
    used = {pair for order in train for pair in pairs(order)}
    held_out: list[Order] = []
    while len(held_out) < HELD_OUT_ROWS:
        unseen = (None, *UNSEEN)[len(held_out) % 4]
        order = draw(rng, {**SEEN, unseen: UNSEEN[unseen]} if unseen else SEEN)
        if not pairs(order) & used and order not in held_out:
            held_out.append(order)
    for name, orders in (("train.json", train), ("held_out.json", held_out)):
        text = json.dumps(make_rows(rng, orders), indent=1)
        Path(__file__).with_name(name).write_text(text + "\n", encoding="utf-8")
        print(f"{name}: {len(orders)} rows")


if __name__ == "__main__":
    main()
