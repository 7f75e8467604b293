"""What is asked: questions, and tasks whose answers repeat their text, through the model's chat template."""

from pathlib import Path
from typing import Any

_LIGHTHOUSE = """The lighthouse at Cape Merrow was built in 1871, after three ships had run aground on the sandbanks \
in a single winter. For ninety years its lamp was lit by hand, first with whale oil, later with \
paraffin. The last keeper, Ada Finch, lived there with her brother until 1962, when the lamp was \
connected to the power line from the village. In 2004 the council wanted to sell the tower, but the \
fishermen of the village bought it together for a symbolic price of one pound. Today it holds a \
small museum, which is open from May to September, and about eleven thousand visitors climb its 174 \
steps each year."""

_ORDERS = """Order 5512: Maria Lopez, 2 lamps, paid, ship to Madrid.
Order 5513: Jonas Weber, 1 desk, not paid, ship to Hamburg.
Order 5514: Emily Carter, 4 chairs, paid, ship to Leeds."""

_CODE = """def total_price(items, discount):
    total = 0
    for item in items:
        price = item["price"]
        quantity = item["quantity"]
        total = total + price * quantity
    if discount > 0:
        total = total - total * discount / 100
    return total"""

_LETTER = """Dear Mr. Hansen, thank you for your letter of March 3. We is sorry that the washing machine you \
bought from us have stopped working. Our technician will visits you on Thursday between 9 and 11 in \
the morning. Please keep the receipt and the guarantee card at hand. The repair do not cost you \
anything."""

QUESTIONS = {
    "capital": "What is the capital of Australia, and why was it chosen?",
    "sky": "Why is the sky blue?",
    "sleep": "Give me three tips for falling asleep faster.",
    "bread": "How do I bake a simple bread at home? List the steps.",
    "poem": "Write a short poem about the first snow of the year.",
    "primes": "Write a Python function that returns all prime numbers below n.",
    "mail": "Write an e-mail to my landlord saying that the heating in my flat is broken.",
    "trains": "A train travels 180 km in 2 hours. How far does it travel in 5 hours at the same speed? Explain.",
    "photosynthesis": "Explain photosynthesis to a ten-year-old.",
    "cats": "What are the advantages and disadvantages of having a cat?",
    "roman": "Who was Julius Caesar, and how did he die?",
    "translate": "Translate into French: Good morning, where is the nearest train station?",
}
"""Questions of everyday, by name; little of their text comes back in an answer."""

TASKS = {
    "summary": f"Summarize this text in three sentences.\n\n{_LIGHTHOUSE}",
    "facts": f"List all years in this text and what happened in them.\n\n{_LIGHTHOUSE}",
    "json": f"Write these orders as a JSON list with the fields number, name, items, paid, city.\n\n{_ORDERS}",
    "code": f"Rename the variable total to amount in this function, and show the whole function.\n\n{_CODE}",
    "docstring": f"Add a docstring to this function, and show the whole function.\n\n{_CODE}",
    "letter": f"Correct the mistakes in this letter, and write it again.\n\n{_LETTER}",
}
"""Tasks that users have whose answers repeat parts of the text that they are about, by name."""


def asked(folder: Path) -> dict[str, list[int]]:
    """Returns the prompt of each question and task by its name, as the chat template of the checkpoint shows it."""
    from lit_gpt.generation.conversation import asked
    from lit_gpt.prompts import Turn, open_style
    from lit_gpt.tokenizer import Tokenizer

    tokenizer = Tokenizer(folder)
    style: Any = open_style("chat_template", folder, tokenizer)
    return {name: asked(style, tokenizer, [Turn("user", text)]).ids for name, text in (QUESTIONS | TASKS).items()}
