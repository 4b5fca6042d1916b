"""python -m train.summary as a user types it."""

from helpers import run_module


def test_the_papers_network(tmp_path):
    done = run_module("train.summary", "--backbone=resnet164", "--nohead_batch_norm", cwd=tmp_path)
    assert done.status == 0, done.err
    head, *_, total = done.out.splitlines()
    assert head.split() == ["part", "output", "parameters", "MACs", "gates"]
    assert total.split()[0::3] == ["total", "7,200"]
    assert total.split()[1] == "1,957,202"


def test_a_runs_gates(tmp_path, trained, data_dir):
    flags = [f"--workdir={trained.path}", f"--data_dir={data_dir}"]
    done = run_module("train.summary", *flags, cwd=tmp_path)
    assert done.status == 0, done.err
    result = trained.result
    kinds = ("gates_always_on", "gates_always_off", "gates_input_dependent")
    assert done.out.splitlines()[-1].split()[-3:] == [str(result[kind]) for kind in kinds]


def test_bad_input_is_refused(tmp_path, trained, data_dir):
    run_module("train.summary", "--backbone=resnet21", cwd=tmp_path).assert_refused("resnet21")
    run_module("train.summary", "--workdir=none", cwd=tmp_path).assert_refused(
        "no directory 'none'"
    )
    flags = [f"--workdir={trained.path}", f"--data_dir={data_dir}", "--split=mine"]
    run_module("train.summary", *flags, cwd=tmp_path).assert_refused("one of test, train", "'mine'")
