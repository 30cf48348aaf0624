"""The processes of a run as TF_CONFIG and Slurm describe them."""

from __future__ import annotations

import json

import pytest

from segment.errors import InputError
from segment.training.cluster import Cluster, expand_counts, expand_nodes, find_cluster

TWO = ["a:1", "b:2"]


def tf_config(cluster: object, kind: str = "worker", index: object = 0) -> dict[str, str]:
    return {"TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})}


def slurm(**changes: str | None) -> dict[str, str]:
    values = {
        "SLURM_JOB_ID": "123456",
        "SLURM_PROCID": "2",
        "SLURM_NODEID": "1",
        "SLURM_STEP_NODELIST": "gpu[07,09]",
        "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    }
    return {name: value for name, value in (values | changes).items() if value is not None}


class TestTfConfig:
    def test_workers(self) -> None:
        assert find_cluster(tf_config({"worker": TWO}, index=1)) == Cluster(("a:1", "b:2"), 1)

    def test_a_chief_comes_first(self) -> None:
        jobs = {"worker": ["b:2", "c:3"], "chief": ["a:1"]}
        assert find_cluster(tf_config(jobs, "chief")) == Cluster(("a:1", "b:2", "c:3"), 0)
        assert find_cluster(tf_config(jobs, "worker", 1)).rank == 2

    def test_comes_before_slurm(self) -> None:
        assert find_cluster(slurm() | tf_config({"worker": TWO})).addresses == ("a:1", "b:2")

    @pytest.mark.parametrize(
        ("environment", "message"),
        [
            ({"TF_CONFIG": "worker"}, "TF_CONFIG: expected"),
            ({"TF_CONFIG": "[]"}, "TF_CONFIG: expected"),
            (tf_config(None), "TF_CONFIG: expected"),
            (tf_config({"worker": TWO}, index="one"), "TF_CONFIG: expected"),
            (tf_config({"worker": TWO, "ps": ["c:3"]}), "expected the jobs chief and worker, found ps"),
            (tf_config({"worker": TWO}, "evaluator"), "found a task of type 'evaluator'"),
            (tf_config({"worker": TWO}, index=2), "worker 2 does not exist, the cluster has 2"),
            (tf_config({"worker": ["a", "b:2"]}), "as host:port, found 'a'"),
            (tf_config({"worker": ["a:1", "a:1"]}), "expected different addresses"),
            (tf_config({"worker": ["a:1"]}), "at least 2 processes, TF_CONFIG names 1"),
            ({}, "needs TF_CONFIG, or to be started by Slurm's srun; found neither"),
        ],
    )
    def test_errors(self, environment: dict[str, str], message: str) -> None:
        with pytest.raises(InputError, match=message):
            find_cluster(environment)


class TestSlurm:
    def test_two_nodes_with_two_tasks_each(self) -> None:
        # Ports: 20000 + 123456 mod 10000, and one more for the second task of a node.
        wanted = ("gpu07:23456", "gpu07:23457", "gpu09:23456", "gpu09:23457")
        assert find_cluster(slurm()) == Cluster(wanted, 2)

    def test_the_nodes_of_the_job_will_do_within_a_step(self) -> None:
        changes = {"SLURM_STEP_NODELIST": None, "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_STEP_ID": "0"}
        changes |= {"SLURM_STEP_TASKS_PER_NODE": None, "SLURM_TASKS_PER_NODE": "1(x2)", "SLURM_PROCID": "1"}
        assert find_cluster(slurm(**changes)) == Cluster(("n1:23456", "n2:23456"), 1)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"SLURM_STEP_NODELIST": None}, "expected the variable SLURM_STEP_NODELIST or SLURM_JOB_NODELIST"),
            ({"SLURM_STEP_NODELIST": None, "SLURM_JOB_NODELIST": "gpu[07,09]"}, "4 tasks but no job step.*by srun"),
            ({"SLURM_STEP_TASKS_PER_NODE": "2"}, "2 nodes but 1 counts"),
            ({"SLURM_PROCID": "4"}, "task 4 of 4"),
            ({"SLURM_PROCID": "one"}, "SLURM_PROCID: expected a number, found 'one'"),
            ({"SLURM_NODEID": "0"}, "task 2 is not on gpu09; add --distribution=block"),
            ({"SLURM_JOB_ID": None}, "SLURM_JOB_ID"),
            ({"SLURM_STEP_NODELIST": "gpu7", "SLURM_STEP_TASKS_PER_NODE": "1", "SLURM_PROCID": "0"}, "Slurm names 1"),
        ],
    )
    def test_errors(self, changes: dict[str, str | None], message: str) -> None:
        if "names 1" in message:
            changes = changes | {"SLURM_NODEID": "0"}
        with pytest.raises(InputError, match=message):
            find_cluster(slurm(**changes))


class TestLists:
    @pytest.mark.parametrize(
        ("text", "names"),
        [
            ("gpu", ["gpu"]),
            ("gpu7,head", ["gpu7", "head"]),
            ("gpu[01-03,7],head", ["gpu01", "gpu02", "gpu03", "gpu7", "head"]),
            ("n[098-101]", ["n098", "n099", "n100", "n101"]),
            ("r[1-2]n[1-2]", ["r1n1", "r1n2", "r2n1", "r2n2"]),
            ("n[1]-ib.local,m-2", ["n1-ib.local", "m-2"]),
        ],
    )
    def test_nodes(self, text: str, names: list[str]) -> None:
        assert expand_nodes(text) == names

    @pytest.mark.parametrize("text", ["", ",", "n[", "n]", "n[1", "n[]", "n[3-1]", "n[a-b]", "n 1", "n[1-99999999]"])
    def test_bad_nodes(self, text: str) -> None:
        with pytest.raises(InputError, match="expected a list of nodes"):
            expand_nodes(text)

    def test_counts(self) -> None:
        assert expand_counts("2(x3),1") == [2, 2, 2, 1]
        for text in ("", "x", "2(x)", "2,"):
            with pytest.raises(InputError, match=r"expected tasks per node such as 2\(x3\),1"):
                expand_counts(text)
