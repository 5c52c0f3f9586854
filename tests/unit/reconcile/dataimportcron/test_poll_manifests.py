"""Tests of the CronJob and the Jobs that poll registries, row by row as other programs know them."""

import json

import pytest

from cdi.api.errors import UsageError
from cdi.api.job import Proxy
from cdi.api.names import initial_poll_job, poll_cron_job, poll_pod
from cdi.api.poll import PollJob
from cdi.reconcile.actions import ObjectRef, PatchObject
from cdi.reconcile.dataimportcron.poll import plan_poll
from cdi.reconcile.settings import ResolvedConfig, WorkerPodConfig
from cdi.reconcile.types import Input
from cdi.worker import poll_program
from tests.unit.reconcile.dataimportcron.test_poll import CRON_JOB, UID, Cluster


@pytest.fixture
def cluster():
    return Cluster()


def created(cluster, kind):
    return next(body for (plural, _, _), body in cluster.objects.items() if plural == kind)


class TestCronJob:
    @pytest.fixture
    def cron_job(self, cluster):
        cluster.step()
        return created(cluster, "cronjobs")

    def test_name_is_that_of_the_cron_and_the_start_of_its_uid(self, cron_job):
        assert cron_job["metadata"]["name"] == CRON_JOB == f"fedora-{UID[:8]}"
        assert cron_job["metadata"]["namespace"] == "cdi"

    def test_labels_are_those_of_the_cron(self, cron_job):
        assert cron_job["metadata"]["labels"] == {
            "cdi.kubevirt.io/dataImportCronNs": "golden",
            "cdi.kubevirt.io/dataImportCron": "fedora",
            "app.kubernetes.io/managed-by": "cdi-controller",
            "app.kubernetes.io/component": "storage",
        }

    def test_owner_is_the_cdi_object(self, cron_job):
        (owner,) = cron_job["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["uid"]) == ("CDI", "cdi-uid")

    @pytest.mark.parametrize("kind", ["cronjobs", "jobs"])
    def test_the_reference_to_the_owner_does_not_block_its_deletion(self, cluster, cron_job, kind):
        """OpenShift requires a right to the CDI object's finalizers for one that does."""
        (owner,) = created(cluster, kind)["metadata"]["ownerReferences"]
        assert (owner["controller"], owner["blockOwnerDeletion"]) == (True, False)

    def test_spec(self, cron_job):
        spec = {name: value for name, value in cron_job["spec"].items() if name != "jobTemplate"}
        assert spec == {
            "schedule": "0 * * * *",
            "concurrencyPolicy": "Forbid",
            "suspend": True,
            "successfulJobsHistoryLimit": 1,
            "failedJobsHistoryLimit": 1,
        }

    @pytest.mark.parametrize("prefix", ["TZ", "CRON_TZ"])
    @pytest.mark.parametrize("space", [" ", "\t", " \t "])
    def test_time_zone_is_a_field_of_its_own(self, prefix, space):
        cluster = Cluster(schedule=f"{prefix}=Asia/Tokyo{space}0 3 * * *")
        cluster.step()
        spec = created(cluster, "cronjobs")["spec"]
        assert (spec["schedule"], spec["timeZone"]) == ("0 3 * * *", "Asia/Tokyo")

    def test_template_is_that_of_the_job(self, cluster, cron_job):
        assert cron_job["spec"]["jobTemplate"]["spec"] == created(cluster, "jobs")["spec"]

    @pytest.mark.parametrize("change", ["image", "placement", "resumed"])
    def test_it_is_corrected_when_the_template_changes(self, cluster, cron_job, change):
        cluster.poll()
        assert cluster.step().actions == ()
        pods = {"image": {"image": "cdi:2"}, "placement": {"placement": {"nodeSelector": {"x": "y"}}}}
        if change == "resumed":
            cron_job["spec"]["suspend"] = False
        else:
            cluster.config = ResolvedConfig(pods=WorkerPodConfig(**{"image": "cdi:1", **pods[change]}))
        (patch,) = cluster.step().actions
        assert isinstance(patch, PatchObject)
        assert created(cluster, "cronjobs")["spec"]["suspend"] is True
        assert cluster.step().actions == ()

    def test_fields_that_the_api_server_added_are_no_change(self, cluster, cron_job):
        cluster.poll()
        cron_job["spec"]["startingDeadlineSeconds"] = 7
        assert cluster.step().actions == ()

    def test_a_patch_removes_what_is_not_wanted_any_more(self, cluster, cron_job):
        cluster.poll()
        cluster.config = ResolvedConfig(pods=WorkerPodConfig(image="cdi:1"))
        (patch,) = plan_poll(cluster.context()).actions
        assert patch.spec["jobTemplate"]["spec"]["template"]["spec"]["nodeSelector"] is None

    @pytest.mark.parametrize("source", ["http", "s3", "gcs"])
    def test_other_sources_have_one_too(self, source):
        url = {"http": "https://h/disk.img", "s3": "s3://bucket/disk.img", "gcs": "gs://bucket/disk.img"}[source]
        cluster = Cluster({source: {"url": url}})
        cluster.step()
        annotations = created(cluster, "jobs")["spec"]["template"]["metadata"]["annotations"]
        job = PollJob.from_json(annotations["cdi.kubevirt.io/job"])
        assert (job.id, job.source.kind, job.source.url) == (UID, source, url)


class TestJob:
    @pytest.fixture
    def job(self, cluster):
        cluster.step()
        return created(cluster, "jobs")

    def test_name_of_the_first(self, job):
        assert job["metadata"]["name"] == f"initial-job-{CRON_JOB}"

    def test_labels_and_owner_are_those_of_the_cronjob(self, cluster, job):
        cron_job = created(cluster, "cronjobs")
        assert job["metadata"]["labels"] == cron_job["metadata"]["labels"]
        assert job["metadata"]["ownerReferences"] == cron_job["metadata"]["ownerReferences"]

    def test_spec(self, job):
        spec = {name: value for name, value in job["spec"].items() if name != "template"}
        assert spec == {"backoffLimit": 2, "ttlSecondsAfterFinished": 10}


class TestPod:
    @pytest.fixture
    def pod(self, cluster):
        cluster.step()
        return created(cluster, "jobs")["spec"]["template"]

    @pytest.fixture
    def container(self, pod):
        (container,) = pod["spec"]["containers"]
        return container

    def test_label_and_annotation(self, pod):
        assert pod["metadata"]["labels"]["cdi.kubevirt.io/dataImportCronPoller"] == ""
        assert pod["metadata"]["annotations"]["openshift.io/required-scc"] == "restricted-v2"

    def test_it_ends_at_once_and_is_not_restarted(self, pod):
        assert (pod["spec"]["restartPolicy"], pod["spec"]["terminationGracePeriodSeconds"]) == ("Never", 0)

    def test_service_account_without_its_token(self, pod):
        assert pod["spec"]["serviceAccountName"] == "cdi-cronjob"
        assert pod["spec"]["automountServiceAccountToken"] is False

    def test_pull_secrets_and_placement(self, pod):
        assert pod["spec"]["imagePullSecrets"] == [{"name": "pull"}]
        assert pod["spec"]["nodeSelector"] == {"a": "b"}

    def test_security_context_is_restricted_without_user_and_group(self, pod, container):
        assert pod["spec"]["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
        context = container["securityContext"]
        assert "runAsUser" not in context
        assert (context["allowPrivilegeEscalation"], context["runAsNonRoot"]) == (False, True)
        assert context["capabilities"] == {"drop": ["ALL"]}

    def test_container(self, container):
        assert (container["name"], container["image"]) == ("cdi-source-update-poller", "cdi:1")
        assert (container["command"], container["args"]) == (["cdi-worker"], ["poll"])
        assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"
        assert "ports" not in container

    def test_the_job_says_what_is_polled_and_how(self, cluster):
        cluster.config = ResolvedConfig(
            insecure_registries=frozenset({"registry.example:5000"}),
            proxy=Proxy(http="http://proxy:3128", no_proxy=".local"),
            pods=WorkerPodConfig(image="cdi:1"),
        )
        cluster.step()
        pod = created(cluster, "jobs")["spec"]["template"]
        job = PollJob.from_json(pod["metadata"]["annotations"]["cdi.kubevirt.io/job"])
        assert (job.id, job.source.url) == (UID, "docker://registry.example:5000/fedora:40")
        assert job.source.tls.insecure
        assert job.source.proxy == Proxy(http="http://proxy:3128", no_proxy=".local")
        shown = pod["spec"]["volumes"][0]["downwardAPI"]["items"][0]
        assert shown["fieldRef"]["fieldPath"] == "metadata.annotations['cdi.kubevirt.io/job']"

    def test_certificates_of_the_source_and_of_the_proxy_are_mounted(self):
        cluster = Cluster({"registry": {"url": "docker://r.example/x", "certConfigMap": "ca"}})
        own = ObjectRef(kind="ConfigMap", namespace="golden", name="ca")
        proxy = ObjectRef(kind="ConfigMap", namespace="cdi", name="proxy-ca")
        cluster.inputs = {one: Input(version="1", keys=frozenset({"ca.pem"})) for one in (own, proxy)}
        cluster.config = ResolvedConfig(trusted_ca=proxy, pods=WorkerPodConfig(image="cdi:1"))
        cluster.step()
        cluster.step()
        spec = created(cluster, "jobs")["spec"]["template"]["spec"]
        volume = next(one for one in spec["volumes"] if one["name"] == "input-0")
        names = [source["configMap"]["name"] for source in volume["projected"]["sources"]]
        assert names == [f"ca-for-{CRON_JOB}", "proxy-ca"]
        assert volume["projected"]["defaultMode"] == 0o444  # the pod has no group that could be given to the files
        mount = next(one for one in spec["containers"][0]["volumeMounts"] if one["name"] == "input-0")
        job = PollJob.from_json(
            created(cluster, "jobs")["spec"]["template"]["metadata"]["annotations"]["cdi.kubevirt.io/job"]
        )
        assert job.source.tls.ca_dir == mount["mountPath"]

    def test_no_secret_is_in_the_environment_or_the_manifest(self):
        cluster = Cluster({"registry": {"url": "docker://r.example/x", "secretRef": "login"}})
        secret = ObjectRef(kind="Secret", namespace="golden", name="login")
        cluster.inputs[secret] = Input(version="1", keys=frozenset({"accessKeyId", "secretKey"}))
        cluster.step()
        cluster.step()
        assert "secretKeyRef" not in json.dumps(created(cluster, "jobs"))


class TestNames:
    @pytest.mark.parametrize("length", [1, 42, 43, 63, 253])
    def test_names_are_valid_for_kubernetes(self, length):
        name = poll_cron_job("c" * length, UID)
        assert len(name) <= 52  # that of a CronJob
        assert len(initial_poll_job(name)) <= 63
        assert len(f"{name}-99999999") <= 63
        assert name.endswith(UID[:8])
        assert len(poll_pod("c" * length, UID)) <= 253

    def test_names_that_fit_are_those_of_kubevirts_cdi(self):
        assert poll_cron_job("c" * 42, UID) == f"{'c' * 42}-{UID[:8]}"
        assert poll_pod("fedora", UID) == f"poller-fedora-{UID[:8]}"

    def test_long_names_stay_apart(self):
        assert poll_cron_job("c" * 60 + "x", UID) != poll_cron_job("c" * 60 + "y", UID)


class TestProgram:
    def test_it_runs_on_this_machine_and_ends_at_once(self, tmp_path):
        import os
        import subprocess

        path = tmp_path / "server"
        assert poll_program.main([str(path)]) == 0
        assert os.stat(path).st_mode & 0o777 == 0o555
        assert subprocess.run([path, "-h"], timeout=60, env={}).returncode == 0

    @pytest.mark.parametrize(("machine", "number"), [("x86_64", 62), ("aarch64", 183), ("s390x", 22)])
    def test_it_is_an_executable_of_the_machine(self, tmp_path, machine, number):
        path = tmp_path / "server"
        poll_program.write(str(path), machine)
        body = path.read_bytes()
        order = "big" if machine == "s390x" else "little"
        assert body.startswith(b"\x7fELF\x02")
        assert int.from_bytes(body[18:20], order) == number
        assert len(body) < 200

    def test_another_machine_is_refused(self, tmp_path, monkeypatch):
        monkeypatch.setattr(poll_program, "_MACHINES", {})
        assert poll_program.main([str(tmp_path / "server")]) == 6
        assert not (tmp_path / "server").exists()

    def test_usage(self):
        assert poll_program.main([]) == UsageError.exit_status
