"""`stackbert attention`: options to arguments, the statements printed, the page written."""

from pathlib import Path
from typing import Annotated

import typer


def attention(
    model: Annotated[
        Path, typer.Argument(help="A Hugging Face checkpoint folder, or a run directory.")
    ],
    text: Annotated[str, typer.Option(help="A file, folder or pattern to take sentences from.")],
    out: Annotated[
        Path, typer.Option(help="Folder for numbers, page and figures; made if need be.")
    ],
    sentences: Annotated[int, typer.Option(min=1, help="Sampled from the text.")] = 256,
    compare: Annotated[
        Path | None,
        typer.Option(help="A second model of the same tokenizer, shallower or deeper, or a run."),
    ] = None,
    beside: Annotated[
        list[Path] | None,
        typer.Option(help="Of a run: another run, whose growths are held beside its own."),
    ] = None,
    max_length: Annotated[
        int, typer.Option(min=2, help="Tokens of a sentence; longer ones are cut.")
    ] = 128,
    seed: Annotated[int, typer.Option(help="Of the sample.")] = 0,
) -> None:
    """Measure where each head of an encoder looks, and how alike its layers are.

    Of a run directory, also what each growth did to the maps; --beside, given once for each run,
    holds other ways of growing beside it. 'stackbert report' takes the folder, too.

    Example: stackbert attention run --text articles.txt --out attention
    """
    from stackbert.attention.examples import collect_examples
    from stackbert.attention.measure import measure_attention
    from stackbert.attention.page import attention_page, write_attention_page
    from stackbert.attention.statements import statements
    from stackbert.attention.stored import ATTENTION, write_examples
    from stackbert.attention.table import layer_table
    from stackbert.files import explaining_os_errors

    with explaining_os_errors(f"making {out}"):
        out.mkdir(parents=True, exist_ok=True)
    result = measure_attention(
        model,
        text=text,
        sentences=sentences,
        max_length=max_length,
        seed=seed,
        compare=compare,
        beside=beside or (),
        say=lambda what: typer.echo(f"measuring {what} …", err=True),
    )
    result.write(out / ATTENTION)
    typer.echo(layer_table(result))
    for sentence in statements(result):
        typer.echo(sentence)
    examples = collect_examples(model, text, result, sentences, beside or ())
    write_examples(examples, out)
    page = write_attention_page(attention_page(result, examples), out)
    typer.echo(f"The page is {page}; its figures are in {out / 'figures'}.")
