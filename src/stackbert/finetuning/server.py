"""Test predictions of a study as GLUE's server takes them, a zip a model."""

from stackbert.errors import UserError
from stackbert.finetuning.folder import Member
from stackbert.finetuning.gather import DIAGNOSTIC
from stackbert.finetuning.results import FinetuneResults, Run
from stackbert.finetuning.runs import read_predictions, result_path
from stackbert.finetuning.submission import Predictions, Submission, server_file, write_submission
from stackbert.finetuning.tasks import GLUE

FOLDER = "submission"


def write_submissions(results: FinetuneResults, *, fill: bool = False) -> dict[str, Submission]:
    """Write a zip for every model whose test splits were predicted.

    Of a task's seeds the one with the best dev score is sent in, as the server takes one. That is
    a choice on dev, so the dev score of that run flatters; its test score does not.

    Args:
        results: of a study with `test=True`.
        fill: answer the tasks without predictions all the same, as the server takes only whole
            submissions.

    Returns:
        By model's name, in `submission/` of the study's folder.

    Raises:
        UserError: no test split of GLUE was predicted.
    """
    written: dict[str, Submission] = {}
    for member in results.record.members:
        predictions = _predictions(results, member)
        if predictions:
            folder = results.folder / FOLDER / member.key
            written[member.name] = write_submission(folder, predictions, fill=fill)
    if not written:
        raise UserError(
            f"{results.folder} holds no predictions of GLUE's test splits. Fine-tune with --submit "
            "and the tasks' test files beside the others."
        )
    return written


def _predictions(results: FinetuneResults, member: Member) -> dict[str, Predictions]:
    found: dict[str, Predictions] = {}
    for name, task in results.record.tasks.items():
        if name not in GLUE:
            continue
        run = _best(results, name, member)
        if run is None:
            continue
        path = result_path(results.folder, name, member, run.seed)
        for split, rows in read_predictions(path).items():
            if split in task.guess:
                continue
            file = (
                GLUE[DIAGNOSTIC].test_file
                if split == DIAGNOSTIC
                else server_file(GLUE[name], split)
            )
            found[file] = [(row["key"], row["prediction"]) for row in rows]
    return found


def _best(results: FinetuneResults, task: str, member: Member) -> Run | None:
    headline = next(m for m in results.measures() if (m.task, m.split) == (task, "dev"))
    runs = [
        run
        for run in results.runs
        if (run.task, run.member) == (task, member) and not run.result.diverged
    ]
    return max(runs, key=lambda run: (run.score(headline), -run.seed), default=None)
