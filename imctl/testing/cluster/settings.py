"""The settings of a test cluster's programs: what they are told, and why it is not the default."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NODE = "node1"
SERVICES = "10.96.0.0/16"
FIRST_SERVICE = "10.96.0.1"  # where pods reach the API server
PODS = "10.88.0.0/24"
API_PORT = 6443
PAUSE_IMAGE = "localhost/pause:1"
KUBELET = Path("/var/lib/kubelet")  # on the node
PLUGINS = Path("/usr/lib/cni")

# What a kubelet wants of the kernel. It would write them, for the whole machine.
SYSCTLS = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}


@dataclass(frozen=True, slots=True)
class Layout:
    """``number``: of the cluster on this machine; its addresses follow from it. ``cgroup``: the
    name of the node's own, below the machine's root."""

    root: Path
    number: int
    cgroup: str

    @property
    def link(self) -> str:
        """Of the machine's end of the link to the node."""
        return f"imk8s{self.number}"

    @property
    def node_address(self) -> str:
        return f"10.99.{self.number}.1"

    @property
    def machine_address(self) -> str:
        """Under which the node and its pods reach this machine."""
        return f"10.99.{self.number}.254"

    @property
    def server(self) -> str:
        return f"https://{self.node_address}:{API_PORT}"

    @property
    def socket(self) -> Path:
        """Of containerd; in the namespaces only, where nobody else's runs. Short: a path of a
        socket has 107 bytes at most."""
        return Path("/run/containerd.sock")

    def pki(self, name: str) -> Path:
        return self.root / "pki" / name


def link_address(here: int, there: int) -> str:
    """Of this end of the link between the nodes of two clusters, by their numbers."""
    return f"10.98.{here}.{there}"


# ----------------------------------------------------------------------------- control plane


def etcd(layout: Layout) -> list[str]:
    return [
        "--name=test", f"--data-dir={layout.root / 'etcd'}",
        "--listen-client-urls=http://127.0.0.1:2379",
        "--advertise-client-urls=http://127.0.0.1:2379",
        "--listen-peer-urls=http://127.0.0.1:2380",
        "--initial-advertise-peer-urls=http://127.0.0.1:2380",
        "--initial-cluster=test=http://127.0.0.1:2380",
        "--unsafe-no-fsync",  # it dies with the cluster, and nobody wants its data then
    ]  # fmt: skip


def api_server(layout: Layout) -> list[str]:
    pki = layout.pki
    return [
        "--etcd-servers=http://127.0.0.1:2379",
        "--bind-address=0.0.0.0", f"--advertise-address={layout.node_address}",
        f"--secure-port={API_PORT}", f"--service-cluster-ip-range={SERVICES}",
        f"--tls-cert-file={pki('apiserver.crt')}",
        f"--tls-private-key-file={pki('apiserver.key')}",
        f"--client-ca-file={pki('ca.crt')}",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={pki('service-accounts.pub')}",
        f"--service-account-signing-key-file={pki('service-accounts.key')}",
        "--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
        # Without both of these exec and logs fail: the node's name is known to no resolver.
        "--kubelet-preferred-address-types=InternalIP",
        f"--kubelet-client-certificate={pki('to-kubelet.crt')}",
        f"--kubelet-client-key={pki('to-kubelet.key')}",
    ]  # fmt: skip


def controller_manager(layout: Layout) -> list[str]:
    config = layout.pki("controller-manager.kubeconfig")
    return [
        f"--kubeconfig={config}", f"--authentication-kubeconfig={config}",
        f"--authorization-kubeconfig={config}", "--bind-address=127.0.0.1",
        "--leader-elect=false", "--use-service-account-credentials=true",
        f"--service-account-private-key-file={layout.pki('service-accounts.key')}",
        f"--root-ca-file={layout.pki('ca.crt')}",
        f"--cluster-signing-cert-file={layout.pki('ca.crt')}",
        f"--cluster-signing-key-file={layout.pki('ca.key')}",
    ]  # fmt: skip


def scheduler(layout: Layout) -> list[str]:
    config = layout.pki("scheduler.kubeconfig")
    return [
        f"--kubeconfig={config}", f"--authentication-kubeconfig={config}",
        f"--authorization-kubeconfig={config}", "--bind-address=127.0.0.1", "--leader-elect=false",
    ]  # fmt: skip


# -------------------------------------------------------------------------------------- node


def kubelet(layout: Layout) -> list[str]:
    root = layout.root
    return [
        f"--config={root / 'kubelet.json'}", f"--kubeconfig={layout.pki('kubelet.kubeconfig')}",
        f"--hostname-override={NODE}", f"--node-ip={layout.node_address}",
        f"--root-dir={KUBELET}", f"--cert-dir={root / 'kubelet-pki'}",
    ]  # fmt: skip


def kube_proxy(layout: Layout) -> list[str]:
    return [f"--config={layout.root / 'kube-proxy.json'}"]


def containerd(layout: Layout) -> list[str]:
    return [f"--config={layout.root / 'containerd.toml'}"]


def write(layout: Layout) -> None:
    """The files that the flags name."""
    root = layout.root
    (root / "cni").mkdir()
    (root / "containerd.toml").write_text(_containerd(layout))
    for path, content in (
        (root / "kubelet.json", _kubelet(layout)),
        (root / "kube-proxy.json", _kube_proxy(layout)),
        (root / "cni" / "10-bridge.conflist", _network(layout)),
    ):
        path.write_text(json.dumps(content, indent=1))


def _kubelet(layout: Layout) -> dict[str, Any]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": layout.node_address,
        "containerRuntimeEndpoint": f"unix://{layout.socket}",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(layout.pki("ca.crt"))},
        },
        "authorization": {"mode": "Webhook"},
        "failCgroupV1": False,
        "failSwapOn": False,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{layout.cgroup}",
        "cgroupsPerQOS": True,
        "enforceNodeAllocatable": ["none"],
        # What needs CAP_SYS_RESOURCE, which a container does not have.
        "oomScoreAdj": 0,
        "maxOpenFiles": 20_000,
        "protectKernelDefaults": True,  # complain of kernel settings, never write them
        "podLogsDir": str(layout.root / "pod-logs"),
        "volumePluginDir": str(layout.root / "volume-plugins"),
        "resolvConf": "",
        "clusterDomain": "cluster.local",
        "imageGCHighThresholdPercent": 100,  # nobody could fetch an image again
        "evictionHard": {
            "memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%",
        },
        "nodeStatusUpdateFrequency": "5s",
        "syncFrequency": "10s",
    }  # fmt: skip


def _kube_proxy(layout: Layout) -> dict[str, Any]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clientConnection": {"kubeconfig": str(layout.pki("kube-proxy.kubeconfig"))},
        "clusterCIDR": PODS,
        "bindAddress": "127.0.0.1",
        "hostnameOverride": NODE,
        "nodePortAddresses": [f"{layout.node_address}/32"],
        # Kernel settings of the whole machine.
        "conntrack": {
            "maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s",
        },
    }  # fmt: skip


def _network(layout: Layout) -> dict[str, Any]:
    addresses = {
        "type": "host-local",
        "ranges": [[{"subnet": PODS}]],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dataDir": str(layout.root / "addresses"),
    }
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "ipMasq": True,
        "hairpinMode": True,
        "ipam": addresses,
    }
    ports = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "0.4.0", "name": "pods", "plugins": [bridge, ports]}


def volume(folder: Path, namespace: str, claim: str) -> dict[str, Any]:
    """A PersistentVolume that is this folder, for that PersistentVolumeClaim and no other, which a
    test that ended may have left; deleted by nobody."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": f"volume-{folder.name.encode().hex()}"},
        "spec": {
            "capacity": {"storage": "100Gi"},
            "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain",
            "hostPath": {"path": str(folder), "type": "Directory"},
            "claimRef": {"namespace": namespace, "name": claim},
        },
    }


def _containerd(layout: Layout) -> str:
    root = layout.root / "containerd"
    return f"""\
version = 2
root = "{root}"
state = "/run/containerd"
oom_score = 0
[grpc]
  address = "{layout.socket}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{root}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{PLUGINS}"
    conf_dir = "{layout.root}/cni"
"""
