"""Tests of the installation of KubeVirt: what it says while it waits."""

from tests.kubevirt import install


class Pods:
    """A client that lists these pods."""

    def __init__(self, *pods):
        self._pods = list(pods)

    def get_all(self, kind):
        assert kind == "pods"
        return self._pods


def pod(name, **status):
    return {"metadata": {"name": name}, "status": status}


def test_pods_that_are_not_ready_are_named_with_their_reasons():
    message = "0/1 nodes are available: 1 Insufficient cpu."
    pods = Pods(
        pod("ready", phase="Running", conditions=[{"type": "Ready", "status": "True"}]),
        pod("done", phase="Succeeded"),
        pod(
            "unscheduled", phase="Pending", conditions=[{"type": "PodScheduled", "status": "False", "message": message}]
        ),
        pod("imageless", phase="Pending", containerStatuses=[{"state": {"waiting": {"reason": "ErrImagePull"}}}]),
        pod("starting", phase="Running", containerStatuses=[{"state": {"running": {}}}]),
        pod("new"),
    )
    assert list(install._pending(pods)) == [
        f"unscheduled ({message})",
        "imageless (ErrImagePull)",
        "starting (Running)",
        "new (new)",
    ]


def test_the_digest_of_an_installation_depends_on_each_input():
    assert install._digest("a", "b") == install._digest("a", "b")
    assert len({install._digest("a", "b"), install._digest("ab", ""), install._digest("b", "a")}) == 3
