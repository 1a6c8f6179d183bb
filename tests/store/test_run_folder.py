"""What runs keep in their folders, and who deletes it."""

from pathlib import Path

import pytest

from strop.proxy.store import run_folder, run_lock


def test_folders_of_runs_that_are_over_are_cleaned_too(tmp_path: Path) -> None:
    """They are where a process was killed at its end; the logs stay."""
    for run in ("run_1", "run_2"):
        (tmp_path / run / ".state-00000002").mkdir(parents=True)
        for name in ("set.npz", "log.jsonl", "output.log"):
            (tmp_path / run / name).touch()

    run_folder.clean_all(tmp_path, None)

    assert {"log.jsonl", "output.log"} == {path.name for path in tmp_path.glob("run_*/*")}


def test_no_folder_is_cleaned_while_a_run_is_under_way(tmp_path: Path) -> None:
    """It reads what is there."""
    (tmp_path / "run_1").mkdir()
    collected = tmp_path / "run_1" / "set.npz"
    collected.touch()

    with (
        run_lock.hold(tmp_path, "run_1"),
        pytest.raises(run_lock.AlreadyRunning) as refused,
    ):
        run_folder.clean_all(tmp_path, None)

    assert "run_1" == refused.value.run
    assert collected.exists()


def test_where_nothing_was_trained_there_is_nothing_to_clean(tmp_path: Path) -> None:
    """The folder isn't made."""
    run_folder.clean_all(tmp_path / "runs", None)

    assert not (tmp_path / "runs").exists()
