"""A program: `python rehearsals.py <file>` runs `train.py …` for each list of arguments in the file, without training.

It prints [exit status, stderr, seconds] of each. A run that is not refused is built, with all its parts.
"""

import contextlib
import io
import json
import sys
import time
import traceback
import warnings
from pathlib import Path

from flowdiff.cli import train
from flowdiff.launch.sweep import rehearse
from flowdiff.runs.job import Job


def _outcome(arguments: list[str]) -> tuple[object, str, float]:
    sys.argv = ["train.py", *arguments]
    status: object = 0
    stderr = io.StringIO()
    began = time.monotonic()
    with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(io.StringIO()):
        try:
            train.main()
        except SystemExit as end:
            status = end.code
        except BaseException:
            status = traceback.format_exc()
    return status, stderr.getvalue(), time.monotonic() - began


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    Job.execute = lambda self, train: rehearse(self.config, self.folder) or {}
    print(json.dumps([_outcome(arguments) for arguments in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))]))
