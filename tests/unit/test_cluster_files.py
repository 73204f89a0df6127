"""cluster.yaml and clusters/: Ray's own checks, a dry run on moto, versions as in pyproject."""

import json
import re
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from botocore.exceptions import ClientError
from moto import mock_aws
from moto.core import set_initial_no_auth_action_count
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from ray._private.runtime_env.packaging import create_package
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.tags import TAG_RAY_CLUSTER_NAME, TAG_RAY_NODE_NAME

from timellama_dist import __version__

ROOT = Path(__file__).parents[2]
LAUNCHED = [ROOT / "cluster.yaml", *sorted((ROOT / "clusters").glob("*.yaml"))]
LAUNCHED.remove(ROOT / "clusters" / "kuberay.yaml")
ON_CLOUDS = [file for file in LAUNCHED if file.name != "local.yaml"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MY_ADDRESS = "198.51.100.7/32"


def read(file: Path) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(file.read_text())
    return config


def manifests() -> dict[str, Any]:
    documents = yaml.safe_load_all((ROOT / "clusters" / "kuberay.yaml").read_text())
    return {one["kind"]: one for one in documents}


def containers() -> list[dict[str, Any]]:
    spec = manifests()["RayCluster"]["spec"]
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    return [one for group in groups for one in group["template"]["spec"]["containers"]]


def name(file: Path) -> str:
    return file.name


@pytest.mark.parametrize("file", LAUNCHED, ids=name)
def test_ray_takes_the_file(file: Path) -> None:
    validate_config(prepare_config(read(file)))


@pytest.mark.parametrize("file", LAUNCHED, ids=name)
def test_a_cluster_asks_for_a_token_and_shows_its_dashboard_to_nobody(file: Path) -> None:
    config = read(file)
    assert "~/.ray/auth_token" in config["file_mounts"].values()
    (head,) = (one for one in config["head_start_ray_commands"] if "ray start" in one)
    assert "--dashboard-host=127.0.0.1" in head
    assert "RAY_JOB_STOP_WAIT_TIME_S=60" in head
    (worker,) = (one for one in config["worker_start_ray_commands"] if "ray start" in one)
    for command in (head, worker):
        told = [command, *config.get("docker", {}).get("run_options", [])]
        assert any("RAY_AUTH_MODE=token" in one for one in told)


@pytest.mark.parametrize("file", ON_CLOUDS, ids=name)
def test_gpu_nodes_come_when_asked_for_and_go_when_idle(file: Path) -> None:
    config = read(file)
    groups = {key: group for key, group in config["available_node_types"].items() if key != "head"}
    assert len(groups) == 2
    for group in groups.values():
        assert group["min_workers"] == 0
        assert 0 < group["max_workers"] <= config["max_workers"]
    assert 0 < config["idle_timeout_minutes"] <= 30
    assert config["provider"]["cache_stopped_nodes"] is False
    assert ["spot" in json.dumps(group).lower() for group in groups.values()] == [False, True]


def test_ray_and_python_are_those_of_the_project() -> None:
    texts = [file.read_text() for file in (*LAUNCHED, ROOT / "clusters" / "Dockerfile")]
    images = [found for text in texts for found in re.findall(r"rayproject/ray:(\S+)", text)]
    assert len(images) == 6
    found = {re.fullmatch(r"([\d.]+)-py3(\d\d)(-gpu)?", tag).group(1, 2) for tag in images}
    versions = {version for version, _ in found}
    versions |= {one for text in texts for one in re.findall(r"ray\[default\]==([\d.]+)", text)}
    versions.add(manifests()["RayCluster"]["spec"]["rayVersion"])
    required = {one.name: one for one in map(Requirement, PROJECT["dependencies"])}
    assert len(versions) == 1
    assert versions.pop() in required["ray"].specifier
    for _, minor in found:
        assert f"3.{minor}" in SpecifierSet(PROJECT["requires-python"])


def test_the_manifest_runs_the_images_of_the_dockerfile_without_root() -> None:
    tags = re.findall(r"--tag (\S+)", (ROOT / "clusters" / "Dockerfile").read_text())
    assert tags == [f"REGISTRY/timellama:{__version__}{kind}" for kind in ("", "-cpu")]
    assert [one["image"] for one in containers()] == tags[::-1]
    spec = manifests()["RayCluster"]["spec"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert group["template"]["spec"]["securityContext"]["runAsNonRoot"] is True
    for one in containers():
        assert one["securityContext"]["allowPrivilegeEscalation"] is False


def test_the_manifest_is_a_cluster_with_a_token_and_a_job_on_it() -> None:
    kinds = manifests()
    assert {kind: one["apiVersion"] for kind, one in kinds.items()} == {
        "PersistentVolumeClaim": "v1",
        "RayCluster": "ray.io/v1",
        "RayJob": "ray.io/v1",
    }
    cluster, job = kinds["RayCluster"], kinds["RayJob"]
    assert cluster["spec"]["authOptions"] == {"mode": "token"}
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}
    (group,) = cluster["spec"]["workerGroupSpecs"]
    assert group["minReplicas"] == 0 < group["maxReplicas"]


def test_a_job_uploads_what_it_runs_and_little_else(tmp_path: Path) -> None:
    package = tmp_path / "package.zip"
    create_package(str(ROOT), package, include_gitignore=True)
    with zipfile.ZipFile(package) as archive:
        files = {one.filename for one in archive.infolist() if not one.is_dir()}
    sources = {str(one.relative_to(ROOT)) for one in (ROOT / "timellama_dist").rglob("*.py")}
    needed = {"ray_jobs/train.py", "ds_configs/zero3.json", "benchmarks/tables.py"}
    needed |= {"timellama_dist/recipes/etth1.yaml", "timellama_dist/ds_configs/zero3.json"}
    assert sources | needed | {"pyproject.toml"} <= files
    assert not [one for one in files if one.startswith((".git/", ".ci/", "benchmarks/results/"))]
    kinds = {one.split("/")[0] for one in files if not one.startswith(".")}
    assert kinds == {"timellama_dist", "ray_jobs", "ds_configs", "benchmarks", "pyproject.toml"}
    # Ray's archives are not compressed.
    own = sum((ROOT / name).stat().st_size for name in files if name.startswith("timellama_dist/"))
    assert package.stat().st_size < 1.3 * own


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """cluster.yaml as a user fills it in, bootstrapped by Ray on moto's AWS."""
    from ray.autoscaler._private.aws.config import bootstrap_aws

    config = read(ROOT / "cluster.yaml")
    region = config["provider"]["region"]
    with pytest.MonkeyPatch.context() as patch, mock_aws():
        # Ray makes an SSH key in ~/.ssh.
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        for key, value in (
            ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", "test"),
            ("AWS_DEFAULT_REGION", region),
        ):
            patch.setenv(key, value)
        iam, ec2 = boto3.client("iam"), boto3.client("ec2")
        for role in ("head", "worker"):
            full = f"timellama-ray-{role}"
            iam.create_role(RoleName=full, AssumeRolePolicyDocument="{}")
            iam.create_instance_profile(InstanceProfileName=full)
            iam.add_role_to_instance_profile(InstanceProfileName=full, RoleName=full)
        (vpc,) = ec2.describe_vpcs()["Vpcs"]
        own = ec2.create_security_group(
            GroupName="timellama-ray", Description="mine", VpcId=vpc["VpcId"]
        )
        rule = {"FromPort": 22, "ToPort": 22, "IpProtocol": "tcp"}
        rule |= {"IpRanges": [{"CidrIp": MY_ADDRESS}]}
        ec2.authorize_security_group_ingress(GroupId=own["GroupId"], IpPermissions=[rule])
        image = ec2.describe_images()["Images"][0]["ImageId"]
        for group in config["available_node_types"].values():
            group["node_config"]["ImageId"] = image
        config = prepare_config(config)
        validate_config(config)
        yield bootstrap_aws(config)


def start(config: dict[str, Any], kind: str, **provider: Any) -> tuple[Any, str]:
    """Start a node as `ray up` does the head, and the head's autoscaler the workers."""
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    cloud = AWSNodeProvider(config["provider"] | provider, config["cluster_name"])
    tags = {
        TAG_RAY_CLUSTER_NAME: config["cluster_name"],
        TAG_RAY_NODE_NAME: f"ray-{kind}",
        "ray-launch-config": "0",
    }
    (started,) = cloud.create_node(config["available_node_types"][kind]["node_config"], tags, 1)
    return cloud, started


@pytest.mark.parametrize("kind", ["head", "gpu_on_demand", "gpu_spot"])
def test_aws_starts_the_nodes_as_the_file_says(aws: dict[str, Any], kind: str) -> None:
    ec2 = boto3.client("ec2")
    cloud, node = start(aws, kind)
    (group,) = ec2.describe_instances(InstanceIds=[node])["Reservations"]
    (found,) = group["Instances"]
    asked = aws["available_node_types"][kind]["node_config"]
    assert found["InstanceType"] == asked["InstanceType"]
    role = "head" if kind == "head" else "worker"
    assert found["IamInstanceProfile"]["Arn"].endswith(f"timellama-ray-{role}")
    assert (found.get("InstanceLifecycle") == "spot") == (kind == "gpu_spot")
    (disk,) = ec2.describe_volumes(
        VolumeIds=[one["Ebs"]["VolumeId"] for one in found["BlockDeviceMappings"]]
    )["Volumes"]
    assert disk["Encrypted"]
    assert disk["Size"] == 200
    (security,) = found["SecurityGroups"]
    assert security["GroupName"] == "timellama-ray"
    cloud.terminate_node(node)
    (group,) = ec2.describe_instances(InstanceIds=[node])["Reservations"]
    assert group["Instances"][0]["State"]["Name"] in ("shutting-down", "terminated")


def test_ray_leaves_the_rules_of_a_security_group_of_one_s_own(aws: dict[str, Any]) -> None:
    ids = aws["available_node_types"]["head"]["node_config"]["SecurityGroupIds"]
    (group,) = boto3.client("ec2").describe_security_groups(GroupIds=ids)["SecurityGroups"]
    allowed = [one["CidrIp"] for rule in group["IpPermissions"] for one in rule["IpRanges"]]
    assert allowed == [MY_ADDRESS]


def test_the_head_s_policy_lets_it_manage_nodes_and_nothing_else(aws: dict[str, Any]) -> None:
    """Only its actions: moto judges neither resources nor conditions on tags."""
    iam = boto3.client("iam")
    iam.create_user(UserName="head")
    policy = json.loads((ROOT / "clusters" / "aws-head-policy.json").read_text())
    for one in policy["Statement"]:
        one["Resource"] = "*"
    iam.put_user_policy(UserName="head", PolicyName="head", PolicyDocument=json.dumps(policy))
    made = iam.create_access_key(UserName="head")["AccessKey"]
    key = {
        "aws_access_key_id": made["AccessKeyId"],
        "aws_secret_access_key": made["SecretAccessKey"],
    }

    @set_initial_no_auth_action_count(0)
    def as_head() -> None:
        cloud, node = start(aws, "gpu_spot", aws_credentials=key)
        cloud.terminate_node(node)
        for service, forbidden in (
            ("iam", lambda client: client.create_user(UserName="mallory")),
            ("ec2", lambda client: client.create_key_pair(KeyName="mallory")),
            ("s3", lambda client: client.list_buckets()),
        ):
            with pytest.raises(ClientError, match=r"AccessDenied|UnauthorizedOperation"):
                forbidden(boto3.client(service, **key))

    as_head()


def test_the_worker_s_policy_is_the_bucket_part_of_the_head_s() -> None:
    head, worker = (
        json.loads((ROOT / "clusters" / f"aws-{role}-policy.json").read_text())["Statement"]
        for role in ("head", "worker")
    )
    assert worker == [one for one in head if one["Sid"].endswith("TheBucket")]
