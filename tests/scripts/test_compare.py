"""scripts/compare.py: what is run, what is skipped, resumed or refused, and that the table says what was found."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
from compare import methods
from config import Config
from grid import arguments, cells
from parallel import Job, last_line, run
from stopwatch import Stopwatch

SCRIPTS = Path(__file__).parents[2] / "scripts"
QUICK = ["--per-class", "12", "--memory", "20", "--tasks", "2", "--checkpoint-every", "2", "--jobs", "2"]
GRID = [*QUICK, "--policies", "reservoir", "ring", "--seeds", "0", "1"]
ONE = [*QUICK, "--policies", "reservoir", "--seeds", "0", "1"]
LOSSES = [
    *QUICK,
    "--strategies",
    "rehearsal",
    "er",
    "--losses",
    "cross_entropy",
    "derpp --alpha 0.1",
    "--seeds",
    "0",
]
FAILING = [*QUICK, "--policies", "magic", "ring", "--strategies", "sgd", "er", "--seeds", "0"]
JOBS: dict[str, dict[str, Any]] = {
    "first": {"argv": [*GRID, "--out", "a"]},
    "again": {"argv": [*GRID, "--out", "a"]},
    "only table": {"argv": [*GRID, "--out", "a", "--table-only"]},
    "changed": {"argv": [*GRID, "--out", "a", "--memory", "30"]},
    "cut": {"argv": [*ONE, "--out", "b"], "stop": "er-reservoir-0"},
    "nothing yet": {"argv": [*ONE, "--out", "b", "--table-only"]},
    "resumed": {"argv": [*ONE, "--out", "b"]},
    "losses": {"argv": [*LOSSES, "--out", "d"]},
    "failing": {"argv": [*FAILING, "--out", "c"]},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]]]:
    """Folder of all comparisons, and exit code, output and started cells of each call."""
    folder = tmp_path_factory.mktemp("compare")
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("run_compare.py"))],
        input=json.dumps(list(JOBS.values())),
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    return folder, dict(zip(JOBS, json.loads(done.stdout.splitlines()[-1]), strict=True))


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


CELLS = [f"er-{policy}-{seed}" for seed in (0, 1) for policy in ("reservoir", "ring")]


def test_every_cell_is_a_run_of_its_own_and_a_second_call_runs_nothing(runs):
    folder, done = runs
    assert done["first"]["code"] == 0, done["first"]["output"]
    assert done["first"]["started"] == CELLS
    for name in CELLS:
        found = result(folder / "a" / name)
        assert name == f"er-{found['config']['policy']}-{found['config']['seed']}"
        assert (folder / "a" / name / "config.json").exists()
        assert "result.json are in" in last_line(folder / "a" / name / "log.txt").replace("and result", "result")
        assert 0 < found["selection_seconds"] < found["seconds"]
    for call in ("again", "only table"):
        assert done[call]["code"] == 0 and done[call]["started"] == []
        assert done[call]["output"].count("│ er ") == 2, "the table has both methods"


def test_the_table_says_what_the_runs_found(runs):
    folder, _ = runs
    records = json.loads((folder / "a" / "table.json").read_text())["methods"]
    assert [record["accuracy"]["mean"] for record in records] == sorted(
        (record["accuracy"]["mean"] for record in records), reverse=True
    )
    lines = [line.strip("| ").split(" | ") for line in (folder / "a" / "table.md").read_text().splitlines()[2:]]
    table = {line[1]: dict(zip(lines[0], line, strict=True)) for line in lines[2:]}
    assert set(table) == {record["policy"] for record in records} == {"reservoir", "ring"}
    for record in records:
        found = [result(folder / "a" / f"er-{record['policy']}-{seed}") for seed in record["seeds"]]
        row = table[record["policy"]]
        for name, key in (
            ("accuracy", "average_accuracy"),
            ("forgetting", "forgetting"),
            ("AAA", "average_anytime_accuracy"),
        ):
            values = [100 * run[key] for run in found]
            assert row[name] == f"{mean(values):.2f} ± {stdev(values):.2f}"
            assert record[name]["mean"] == pytest.approx(mean(values) / 100)
        for name in ("seconds", "selection_seconds"):
            assert record[name]["values"] == [run[name] for run in found]
        assert row["seeds"] == "2" and row["memory, bytes"] == f"{found[0]['memory_bytes']:,}"
    assert (folder / "a" / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_a_cell_with_another_configuration_is_refused(runs):
    _, done = runs
    assert done["changed"]["code"] == 1 and done["changed"]["started"] == []
    assert "4 of 4 cells were run with another configuration" in done["changed"]["output"]
    assert "memory: 20 then, 30 now" in done["changed"]["output"]


def test_cells_cut_by_ctrl_c_go_on_to_the_same_bits(runs):
    folder, done = runs
    assert done["cut"]["code"] == 130 and "goes on from the last checkpoints" in done["cut"]["output"]
    names = ["er-reservoir-0", "er-reservoir-1"]
    assert done["nothing yet"]["code"] == 1 and "2 of 2 cells are not finished" in done["nothing yet"]["output"]
    assert done["resumed"]["code"] == 0 and done["resumed"]["started"] == names
    assert result(folder / "b" / names[0])["config"]["resume"], "it did not start anew"
    for name in names:
        whole, cut = result(folder / "a" / name), result(folder / "b" / name)
        for key in ("parameters_sha256", "memory_sha256", "accuracy_matrix"):
            assert whole[key] == cut[key]


def test_the_table_has_losses_where_they_differ(runs):
    folder, done = runs
    names = ["rehearsal-reservoir-0", "rehearsal-reservoir-derpp,alpha=0.1-0", "er-reservoir-0"]
    assert done["losses"]["code"] == 0 and done["losses"]["started"] == names, done["losses"]["output"]
    heads = {name: (folder / name / "table.md").read_text().splitlines()[2] for name in ("a", "d")}
    assert "| retrieval | seeds |" in heads["a"] and "| retrieval | loss | seeds |" in heads["d"]
    records = json.loads((folder / "d" / "table.json").read_text())["methods"]
    assert {record["loss"] for record in records} == {"-", "cross_entropy", "derpp --alpha 0.1"}
    assert [result(folder / "d" / name)["config"]["loss"] for name in names[:2]] == ["cross_entropy", "derpp"]


def test_a_failing_cell_is_told_and_does_not_stop_the_others(runs):
    folder, done = runs
    output = done["failing"]["output"]
    assert done["failing"]["code"] == 1
    assert done["failing"]["started"] == ["sgd-0", "er-magic-0", "er-ring-0"], "sgd needs no policy"
    assert "er-magic-0: ValueError: unknown policy 'magic'; there are reservoir" in output
    records = json.loads((folder / "c" / "table.json").read_text())["methods"]
    assert {(record["strategy"], record["policy"]) for record in records} == {("sgd", "-"), ("er", "ring")}


def test_a_real_call_from_the_command_line(tmp_path):
    command = [sys.executable, str(SCRIPTS / "compare.py"), *QUICK, "--seeds", "3"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert result(tmp_path / "runs" / "compare" / "er-reservoir-3")["config"]["seed"] == 3
    assert "done er-reservoir-3: " in done.stdout


# -- the cells ----------------------------------------------------------------------------------------


def test_a_value_brings_settings_and_options_of_its_own():
    base = Config(per_class=20, beta=10.0, out="somewhere")
    made = cells(base, ["derpp fuse=True"], ["reservoir --beta 100", "ring"], ["uniform", "mir lr=0.1"], [5])
    assert [(cell.name, cell.config.beta) for cell in made] == [
        ("derpp,fuse=True-reservoir,beta=100-5", 100),
        ("derpp,fuse=True-reservoir,beta=100-mir,lr=0.1-5", 100),
        ("derpp,fuse=True-ring-5", 10),
        ("derpp,fuse=True-ring-mir,lr=0.1-5", 10),
    ]
    last = made[-1].config
    assert (last.strategy, last.policy, last.retrieval, last.seed) == ("derpp", "ring", "mir", 5)
    assert last.strategy_options == ("fuse=True",) and last.retrieval_options == ("lr=0.1",)
    assert (last.policy_options, last.per_class, last.out) == ((), 20, "somewhere")


def test_losses_are_an_axis_of_the_strategy_that_takes_any():
    made = cells(
        Config(), ["sgd", "er", "rehearsal"], ["ring"], ["uniform"], [0], ["cross_entropy", "derpp --alpha 0.2"]
    )
    assert [(cell.name, cell.method.loss, cell.config.loss, cell.config.alpha) for cell in made] == [
        ("sgd-0", "-", "cross_entropy", None),
        ("er-ring-0", "-", "cross_entropy", None),
        ("rehearsal-ring-0", "cross_entropy", "cross_entropy", None),
        ("rehearsal-ring-derpp,alpha=0.2-0", "derpp --alpha 0.2", "derpp", 0.2),
    ]
    (cell,) = cells(Config(), ["rehearsal"], ["ring"], ["uniform"], [0], ["sup_con temperature=0.3"])
    assert (cell.name, cell.config.loss_options) == (
        "rehearsal-ring-sup_con,temperature=0.3-0",
        ("temperature=0.3",),
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"losses": ["derpp"]}, "--losses is for --strategies rehearsal; all others have their own"),
        ({"strategies": ["rehearsal"], "losses": []}, "at least one strategy, policy, retrieval, loss and seed"),
        ({"base": Config(policy="ring")}, "--policy in every cell: the grid decides that; use --strategies"),
        ({"base": Config(seed=3)}, "--seed in every cell"),
        ({"policies": ["ring --seed 4"]}, "--seed in 'ring --seed 4'"),
        ({"policies": ["ring", "ring"]}, "the run 'er-ring-0' is asked for twice"),
        ({"seeds": []}, "at least one strategy, policy, retrieval, loss and seed"),
        ({"policies": ["--beta 3"]}, "a name was expected"),
        ({"policies": [""]}, "a name was expected"),
        ({"policies": ["ring 'compat"]}, "ring 'compat.* cannot be read: No closing quotation"),
        ({"policies": ["ring --out elsewhere"]}, "--out in 'ring --out elsewhere'"),
    ],
)
def test_a_grid_that_makes_no_sense_is_refused(change, message):
    given = {"base": Config(), "strategies": ["er"], "policies": ["ring"], "retrievals": ["uniform"], "seeds": [0]}
    with pytest.raises(ValueError, match=message):
        cells(**(given | change))


def test_the_command_line_of_a_cell_means_its_configuration():
    import tyro

    config = Config(
        stream="split_npz",
        data="a b.npz",
        per_class=3,
        policy_options=("gate=sample", "references=5"),
        lr=1e-3,
        joint_forward=False,
        augment=True,
        seed=7,
        layers="last",
    )
    assert tyro.cli(Config, args=arguments(config)) == config
    assert arguments(Config()) == []


def test_options_added_since_a_run_do_not_change_it(tmp_path):
    (cell,) = cells(Config(out=str(tmp_path)), ["er"], ["ring"], ["uniform"], [0])
    cell.folder.mkdir()
    old = {name: value for name, value in vars(cell.config.completed()).items() if name != "momentum"}
    (cell.folder / "config.json").write_text(json.dumps(old))
    assert cell.changes() == []
    (cell.folder / "config.json").write_text(json.dumps({**old, "momentum": 0.5}))
    assert cell.changes() == ["momentum: 0.5 then, 0.0 now"]
    (cell.folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json cannot be read"):
        cell.changes()


def test_results_without_a_measure_leave_it_out():
    made = cells(Config(), ["joint"], ["ring"], ["uniform"], [0])
    found = {"average_accuracy": 0.5, "seconds": 1.0, "memory_bytes": 0, "config": {"seed": 0}}
    (record,) = methods(made, {made[0]: found})
    assert record["policy"] == "-" and record["forgetting"] == {"mean": None, "deviation": None, "values": []}


# -- the processes ------------------------------------------------------------------------------------


def test_no_child_outlives_the_parent(tmp_path):
    say = "import os, signal; print(os.getpid(), flush=True); signal.pause()"
    jobs = [Job(f"{n}", (sys.executable, "-c", say), tmp_path / f"{n}.txt") for n in range(3)]
    seen: dict[str, int] = {}

    def watch(running, ended):
        seen.update({job.name: int(text) for job in running if (text := last_line(job.log))})
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(jobs, 2, watch)
    assert set(seen) == {"0", "1"}, "the third waits for its turn"
    for pid in seen.values():
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_jobs_are_asked_for_when_there_is_room(tmp_path):
    """So that each is looked at anew: what another comparison has finished meanwhile is not run."""
    left: list[str] = []

    def jobs():
        for n in range(4):
            left.append(f"before {n}")
            if n != 2:
                yield Job(f"{n}", (sys.executable, "-c", "pass"), tmp_path / f"{n}.txt")

    run(jobs(), 1, lambda running, codes: left.extend(job.name for job in codes))
    assert left == ["before 0", "0", "before 1", "1", "before 2", "before 3", "3"]


def test_how_a_job_ended_and_what_it_said_last(tmp_path):
    code = "import os, sys; print('out'); print('last\\n\\n', file=sys.stderr); {}"
    endings = ["sys.exit(3)", f"sys.stderr.flush(); os.kill(os.getpid(), {int(signal.SIGKILL)})", "pass"]
    jobs = [
        Job(f"{n}", (sys.executable, "-c", code.format(end)), tmp_path / f"{n}.txt")
        for n, end in enumerate(endings)
    ]
    codes: dict[str, int] = {}
    run(jobs, 3, lambda running, ended: codes.update({job.name: code for job, code in ended.items()}))
    assert codes == {"0": 3, "1": -signal.SIGKILL, "2": 0}
    assert "last" in (tmp_path / "0.txt").read_text() and last_line(tmp_path / "1.txt") == "last"
    assert last_line(tmp_path / "none.txt") == ""


def test_a_stopwatch_counts_calls_within_calls_once(monkeypatch):
    class Thing:
        def add(self, n: int) -> int:
            return n + self.draw(1)

        def draw(self, n: int) -> int:
            return n

    clock = iter(range(100))
    monkeypatch.setattr("time.perf_counter", lambda: float(next(clock)))
    thing = Thing()
    watch = Stopwatch(thing, "add", "draw")
    watch.seconds = 10.0
    assert thing.add(2) == 3 and watch.seconds == 11
    assert thing.draw(n=2) == 2 and watch.seconds == 12
