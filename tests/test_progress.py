"""The bar and the lines that long work shows."""

import fcntl
import os
import re
import struct
import subprocess
import sys
import termios
from types import SimpleNamespace

from stackbert.progress import Lines

TRAINING = """
import sys, time
from stackbert.progress import console_progress
with console_progress() as progress:
    for step in range(1, 61):
        progress.step(step, 60, "loss 5.123, stage 1/3, depth 2, lr 1.00e-03, 12,345 tokens/s")
        if step == 30:
            progress.say("grown")
        time.sleep(0.02)
"""


def test_the_bar_stays_one_line_when_the_terminal_narrows_and_honours_no_color() -> None:
    own, given = os.openpty()

    def resize(columns: int) -> None:
        fcntl.ioctl(own, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    resize(140)
    environment = {**os.environ, "TERM": "xterm", "NO_COLOR": "1"}
    environment.pop("COLUMNS", None)
    command = [sys.executable, "-c", TRAINING]
    child = subprocess.Popen(command, stderr=given, stdout=given, stdin=given, env=environment)
    os.close(given)
    shown, done = "", False
    while not done:
        try:
            shown += os.read(own, 4096).decode()
        except OSError:  # the child has closed its end
            done = True
        if "grown" in shown:
            resize(50)
    assert child.wait() == 0
    assert not re.search(r"\x1b\[[\d;]*m", shown.replace("\x1b[0m", "")), "colour"
    frames = re.split(r"[\r\n]+", re.sub(r"\x1b\[[?\d;]*[a-zA-Z]", "", shown))
    assert "tokens/s" in frames[1]
    assert re.search(r"100% 0\.0 s left, 60/60 loss 5\.123, .*…$", frames[-2].rstrip()), frames[-5:]
    assert max(map(len, frames[-4:])) <= 50


def test_lines_in_a_file_have_the_time_and_the_time_left(tmp_path, monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr("stackbert.progress.time", SimpleNamespace(monotonic=lambda: now[0]))
    lines = Lines(tmp_path / "log.txt")
    for step, left in ((10, None), (11, None), (12, None), (13, None), (14, 60.0)):
        lines.step(step, 100, "loss 5.000", left)
        now[0] += 15.0
    by_steps, as_told = (tmp_path / "log.txt").read_text().splitlines()
    assert re.fullmatch(r"[-\d]{10} [:\d]{8} 22 min left, 12/100 loss 5.000", by_steps)
    assert as_told.endswith("1 min left, 14/100 loss 5.000")
