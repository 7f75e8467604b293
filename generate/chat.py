"""Chat with a model or a finetuned run in the terminal, in the prompt style it was trained with; /help lists commands.

python generate/chat.py --checkpoint_dir checkpoints/HuggingFaceTB/SmolLM2-135M-Instruct

Answers go to stdout, everything else to stderr. Without a terminal, each line of standard input is answered.
"""

from pathlib import Path
from typing import Literal

from lit_gpt.args import ChatArgs, Precision, Quantization


def main(
    checkpoint_dir: Path = Path("checkpoints/stabilityai/stablelm-base-alpha-3b"),
    finetuned_path: Path | None = None,
    compare: bool = False,
    system: str = "",
    prompt_style: str | None = None,
    precision: Precision | None = None,
    quantize: Quantization | Literal["none"] | None = None,
    sampling: ChatArgs = ChatArgs(),
) -> None:
    """Chats until ctrl-D.

    Args:
        checkpoint_dir: folder of a converted checkpoint.
        finetuned_path: folder of a run of any method, or the weights in it; the checkpoint itself answers if not given.
        compare: let the checkpoint and the run answer side by side, each in a conversation of its own.
        system: system text of the conversation.
        prompt_style: texts put around questions and answers; if not given, those of the training, else the chat
            template, else plain, which puts none.
        precision: bf16-true on a GPU that has it and 32-true on a CPU if not given.
        quantize: quantize the weights of the blocks to 4 or 8 bits, or not (none); if not given, as in the training of
            the run, and else not.
    """
    from concurrent.futures import ThreadPoolExecutor

    from lit_gpt.cli.imports import importing
    from lit_gpt.foreign import start
    from lit_gpt.tokenizer import Tokenizer

    start("templates")  # it gets ready while torch is imported, and so does the tokenizer
    tokenizer = ThreadPoolExecutor(1).submit(Tokenizer, checkpoint_dir)
    with importing():
        from lit_gpt.chat.commands import greet, obey
        from lit_gpt.chat.lines import listen
        from lit_gpt.chat.opening import open_voices
        from lit_gpt.chat.session import Session, talk
        from lit_gpt.fabric import make_fabric
        from lit_gpt.generation.answer import loading

    fabric = make_fabric(precision)
    with loading(checkpoint_dir):
        how = {"compare": compare, "style": prompt_style, "quantize": quantize}
        voices = open_voices(fabric, tokenizer.result(), checkpoint_dir, finetuned_path, **how)
    session = Session(voices, sampling)
    next_message, typed = listen()
    greet(session, system, typed)
    talk(session, obey, next_message, typed)


if __name__ == "__main__":
    from lit_gpt.cli import run

    run(main)
