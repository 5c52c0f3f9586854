"""Capabilities of well-known provisioners.

Names, modes, clone strategies and minimum sizes agree with those of KubeVirt's CDI (its package storagecapabilities),
so that a volume gets the same settings with either. For the additional provisioners only what every volume of the
driver supports is listed. Tuples are in order of preference.
"""

from __future__ import annotations

from cdi.api.claims import AccessMode, VolumeMode
from cdi.api.storageprofile import CloneStrategy, CronSourceFormat
from cdi.reconcile.storage.capabilities import (
    Capabilities,
    ConditionalCapabilities,
    ParameterMatch,
    PropertySet,
    Provisioner,
)

_COPY, _CSI, _SNAPSHOT = CloneStrategy.COPY, CloneStrategy.CSI_CLONE, CloneStrategy.SNAPSHOT
_CRON_SNAPSHOT = CronSourceFormat.SNAPSHOT


def _set(access_mode: AccessMode, volume_mode: VolumeMode) -> PropertySet:
    return PropertySet(access_modes=(access_mode.value,), volume_mode=volume_mode.value)


_RWX_BLOCK = _set(AccessMode.READ_WRITE_MANY, VolumeMode.BLOCK)
_RWX_FILE = _set(AccessMode.READ_WRITE_MANY, VolumeMode.FILESYSTEM)
_RWO_BLOCK = _set(AccessMode.READ_WRITE_ONCE, VolumeMode.BLOCK)
_RWO_FILE = _set(AccessMode.READ_WRITE_ONCE, VolumeMode.FILESYSTEM)
_ROX_BLOCK = _set(AccessMode.READ_ONLY_MANY, VolumeMode.BLOCK)
_ROX_FILE = _set(AccessMode.READ_ONLY_MANY, VolumeMode.FILESYSTEM)

_SHARED_BLOCK = (_RWX_BLOCK, _RWO_BLOCK, _RWO_FILE)
"""A block device that several nodes may open, as in a storage network."""
_SINGLE = (_RWO_BLOCK, _RWO_FILE)
"""A block device that is attached to one node at a time."""
_SHARED_FILE = (_RWX_FILE, _RWO_FILE)
_FILE_SERVER = (_RWX_FILE, _RWO_FILE, _ROX_FILE)
_ALL_BUT_SHARED_FILE = (*_SHARED_BLOCK, _ROX_BLOCK, _ROX_FILE)
_ALL_BUT_FILE_FOR_MANY = (*_SHARED_BLOCK, _ROX_BLOCK)

_FSTYPE = "csi.storage.k8s.io/fstype"
_NFS = (ParameterMatch(parameter=_FSTYPE, any_of=("nfs",)),)
_NFS_PROTOCOL = (ParameterMatch(parameter="protocol", any_of=("nfs",)),)
# Portworx exports a volume to many nodes through NFS if these mount options are set.
_PORTWORX_NFS = (ParameterMatch(parameter="sharedv4_mount_options", includes=("vers=3.0", "nolock")),)


def _capabilities(
    sets: tuple[PropertySet, ...],
    clone: CloneStrategy | None = None,
    cron: CronSourceFormat | None = None,
    minimum: str | None = None,
) -> Capabilities:
    return Capabilities(sets=sets, clone=clone, cron=cron, minimum=minimum)


def _provisioner(
    name: str, product: str, otherwise: Capabilities | None, *variants: tuple[tuple[ParameterMatch, ...], Capabilities]
) -> Provisioner:
    return Provisioner(
        name=name,
        product=product,
        otherwise=otherwise,
        variants=tuple(
            ConditionalCapabilities(when=when, capabilities=capabilities) for when, capabilities in variants
        ),
    )


_PORTWORX = (_RWX_BLOCK, _RWX_FILE, _RWO_BLOCK, _RWO_FILE)
_TRIDENT_SNAPSHOTS = (_SNAPSHOT, _CRON_SNAPSHOT)

_KNOWN: tuple[Provisioner, ...] = (
    # --- directories of a node ---
    _provisioner("kubevirt.io.hostpath-provisioner", "KubeVirt hostpath (CSI)", _capabilities((_RWO_FILE,))),
    _provisioner("kubevirt.io/hostpath-provisioner", "KubeVirt hostpath", _capabilities((_RWO_FILE,))),
    _provisioner("k8s.io/minikube-hostpath", "minikube", _capabilities((_RWO_FILE,))),
    _provisioner("rancher.io/local-path", "local-path (k3s)", _capabilities((_RWO_FILE,))),
    _provisioner("microk8s.io/hostpath", "MicroK8s hostpath", _capabilities((_RWO_FILE,))),
    _provisioner("docker.io/hostpath", "Docker Desktop", _capabilities((_RWO_FILE,))),
    # --- file servers ---
    _provisioner("nfs.csi.k8s.io", "NFS (CSI)", _capabilities((_RWX_FILE,))),
    _provisioner("k8s-sigs.io/nfs-subdir-external-provisioner", "NFS subdirectories", _capabilities((_RWX_FILE,))),
    _provisioner("smb.csi.k8s.io", "SMB (CSI)", _capabilities((_RWX_FILE,))),
    # --- Ceph ---
    _provisioner("kubernetes.io/rbd", "Ceph RBD, in tree", _capabilities(_SHARED_BLOCK)),
    _provisioner("rbd.csi.ceph.com", "Ceph RBD", _capabilities(_SHARED_BLOCK)),
    _provisioner("rook-ceph.rbd.csi.ceph.com", "Ceph RBD (Rook)", _capabilities(_SHARED_BLOCK, _CSI, _CRON_SNAPSHOT)),
    _provisioner(
        "openshift-storage.rbd.csi.ceph.com", "Ceph RBD (ODF)", _capabilities(_SHARED_BLOCK, _CSI, _CRON_SNAPSHOT)
    ),
    _provisioner("cephfs.csi.ceph.com", "CephFS", _capabilities((_RWX_FILE,), _CSI)),
    _provisioner("rook-ceph.cephfs.csi.ceph.com", "CephFS (Rook)", _capabilities((_RWX_FILE,), _CSI)),
    _provisioner("openshift-storage.cephfs.csi.ceph.com", "CephFS (ODF)", _capabilities((_RWX_FILE,), _CSI)),
    # --- replicated and local block devices ---
    _provisioner("linstor.csi.linbit.com", "LINSTOR", _capabilities(_ALL_BUT_SHARED_FILE)),
    _provisioner(
        "driver.longhorn.io",
        "Longhorn",
        _capabilities((_RWO_BLOCK,)),
        ((ParameterMatch(parameter="migratable", any_of=("true",)),), _capabilities((_RWX_BLOCK, _RWO_BLOCK))),
        ((ParameterMatch(parameter="nfsOptions"),), _capabilities(_SHARED_FILE)),
        ((ParameterMatch(parameter="fsType"),), _capabilities((_RWO_FILE,))),
    ),
    _provisioner("topolvm.cybozu.com", "TopoLVM, before 0.15", _capabilities(_SINGLE, _COPY)),
    _provisioner("topolvm.io", "TopoLVM", _capabilities(_SINGLE, _COPY)),
    _provisioner("kubesan.gitlab.io", "KubeSAN", _capabilities((_RWX_BLOCK, _ROX_BLOCK, _RWO_BLOCK, _RWO_FILE), _CSI)),
    _provisioner("kubernetes.io/storageos", "StorageOS, in tree", _capabilities((_RWO_FILE,))),
    _provisioner("storageos", "StorageOS", _capabilities((_RWO_FILE,))),
    _provisioner("local.csi.openebs.io", "OpenEBS LVM", _capabilities(_SINGLE)),
    _provisioner("zfs.csi.openebs.io", "OpenEBS ZFS", _capabilities(_SINGLE)),
    _provisioner("openebs.io/local", "OpenEBS hostpath and device", _capabilities((_RWO_FILE,))),
    _provisioner("openebs.io/nfsrwx", "OpenEBS NFS", _capabilities(_SHARED_FILE)),
    _provisioner("cstor.csi.openebs.io", "OpenEBS cStor", _capabilities(_SINGLE)),
    _provisioner("io.openebs.csi-mayastor", "OpenEBS Mayastor", _capabilities(_SINGLE)),
    _provisioner("csi.storpool.com", "StorPool", _capabilities(_SINGLE)),
    # --- Amazon ---
    _provisioner("kubernetes.io/aws-ebs", "Amazon EBS, in tree", _capabilities((_RWO_BLOCK,))),
    _provisioner(
        "ebs.csi.aws.com",
        "Amazon EBS",
        _capabilities((_RWO_BLOCK,)),
        ((ParameterMatch(parameter="type", any_of=("io1",)),), _capabilities((_RWO_BLOCK,), minimum="4Gi")),
        ((ParameterMatch(parameter="type", any_of=("io2",)),), _capabilities(_SHARED_BLOCK, minimum="4Gi")),
        ((ParameterMatch(parameter="type", any_of=("gp2", "gp3")),), _capabilities((_RWO_BLOCK,), minimum="1Gi")),
    ),
    _provisioner("efs.csi.aws.com", "Amazon EFS", _capabilities(_SHARED_FILE)),
    _provisioner("fsx.csi.aws.com", "Amazon FSx for Lustre", _capabilities((_RWX_FILE,))),
    _provisioner("fsx.openzfs.csi.aws.com", "Amazon FSx for OpenZFS", _capabilities((_RWX_FILE,))),
    # --- Microsoft ---
    _provisioner("kubernetes.io/azure-disk", "Azure disk, in tree", _capabilities((_RWO_BLOCK,))),
    _provisioner("disk.csi.azure.com", "Azure disk", _capabilities((_RWO_BLOCK,))),
    _provisioner("kubernetes.io/azure-file", "Azure file, in tree", _capabilities((_RWX_FILE,))),
    _provisioner("file.csi.azure.com", "Azure file", _capabilities((_RWX_FILE,))),
    # --- Google ---
    _provisioner("kubernetes.io/gce-pd", "Google persistent disk, in tree", _capabilities((_RWO_BLOCK,))),
    _provisioner(
        "pd.csi.storage.gke.io",
        "Google persistent disk",
        _capabilities((_RWO_BLOCK,), _SNAPSHOT, _CRON_SNAPSHOT),
        (
            (ParameterMatch(parameter="type", any_of=("hyperdisk-balanced", "hyperdisk-balanced-high-availability")),),
            _capabilities(_SHARED_BLOCK, _SNAPSHOT, _CRON_SNAPSHOT, "4Gi"),
        ),
    ),
    _provisioner("filestore.csi.storage.gke.io", "Google Filestore", _capabilities((_RWX_FILE,))),
    # --- other clouds ---
    _provisioner("blockvolume.csi.oraclecloud.com", "Oracle block volume", _capabilities(_SHARED_BLOCK)),
    _provisioner("cinder.csi.openstack.org", "OpenStack Cinder", _capabilities(_SINGLE)),
    _provisioner("manila.csi.openstack.org", "OpenStack Manila", _capabilities((_RWX_FILE,))),
    _provisioner("csi.ovirt.org", "oVirt", _capabilities(_SINGLE)),
    _provisioner("csi.hetzner.cloud", "Hetzner Cloud volumes", _capabilities(_SINGLE)),
    _provisioner("dobs.csi.digitalocean.com", "DigitalOcean volumes", _capabilities(_SINGLE)),
    _provisioner("linodebs.csi.linode.com", "Akamai (Linode) volumes", _capabilities(_SINGLE)),
    _provisioner("diskplugin.csi.alibabacloud.com", "Alibaba Cloud disk", _capabilities(_SINGLE)),
    # --- VMware ---
    _provisioner(
        "csi.vsphere.vmware.com",
        "vSphere",
        _capabilities(_SINGLE),
        ((ParameterMatch(parameter=_FSTYPE, part="nfs"),), _capabilities((_RWX_FILE, _RWO_BLOCK, _RWO_FILE))),
    ),
    # --- Dell ---
    _provisioner(
        "csi-unity.dellemc.com",
        "Dell Unity XT",
        _capabilities(_ALL_BUT_SHARED_FILE),
        (_NFS_PROTOCOL, _capabilities(_FILE_SERVER)),
    ),
    _provisioner(
        "csi-vxflexos.dellemc.com",
        "Dell PowerFlex",
        _capabilities(_ALL_BUT_SHARED_FILE, _CSI),
        (_NFS, _capabilities(_FILE_SERVER)),
    ),
    _provisioner("csi-isilon.dellemc.com", "Dell PowerScale", _capabilities(_FILE_SERVER, _CSI)),
    _provisioner(
        "csi-powermax.dellemc.com",
        "Dell PowerMax",
        _capabilities(_ALL_BUT_FILE_FOR_MANY, _CSI),
        (_NFS, _capabilities(_FILE_SERVER)),
    ),
    _provisioner(
        "csi-powerstore.dellemc.com",
        "Dell PowerStore",
        _capabilities(_ALL_BUT_FILE_FOR_MANY, _COPY),
        (_NFS, _capabilities(_FILE_SERVER)),
    ),
    # --- NetApp ---
    _provisioner(
        "csi.trident.netapp.io",
        "NetApp Trident",
        None,
        (
            (ParameterMatch(parameter="backendType", prefix="ontap-nas"),),
            _capabilities(_SHARED_FILE, *_TRIDENT_SNAPSHOTS),
        ),
        (
            (ParameterMatch(parameter="backendType", prefix="ontap-san"),),
            _capabilities((_RWX_BLOCK,), *_TRIDENT_SNAPSHOTS),
        ),
        (
            (
                ParameterMatch(parameter="backendType", any_of=("google-cloud-netapp-volumes",)),
                ParameterMatch(parameter="selector", includes=("performance=flex",)),
            ),
            _capabilities(_SHARED_FILE, *_TRIDENT_SNAPSHOTS, "1Gi"),
        ),
    ),
    _provisioner("beegfs.csi.netapp.com", "BeeGFS", _capabilities((_RWX_FILE,))),
    # --- Pure Storage, Portworx ---
    _provisioner(
        "kubernetes.io/portworx-volume",
        "Portworx, in tree",
        _capabilities(_PORTWORX),
        (_PORTWORX_NFS, _capabilities(_SHARED_FILE)),
    ),
    _provisioner(
        "pxd.portworx.com",
        "Portworx",
        _capabilities(_PORTWORX, _CSI),
        ((ParameterMatch(parameter="backend", any_of=("pure_block",)),), _capabilities(_SHARED_BLOCK)),
        ((ParameterMatch(parameter="backend", any_of=("pure_fa_file",)),), _capabilities(_SHARED_FILE)),
        ((ParameterMatch(parameter="backend"),), _capabilities(_PORTWORX, _CSI)),
        (_PORTWORX_NFS, _capabilities(_SHARED_FILE, _CSI)),
    ),
    _provisioner(
        "pure-csi",
        "Pure Service Orchestrator",
        _capabilities(_SINGLE),
        ((ParameterMatch(parameter="backend", any_of=("file",)),), _capabilities((_RWX_FILE,))),
    ),
    # --- other storage vendors ---
    _provisioner("hspc.csi.hitachi.com", "Hitachi", _capabilities(_SHARED_BLOCK, _CSI)),
    _provisioner("csi.hpe.com", "HPE", _capabilities(_SHARED_BLOCK, _CSI)),
    _provisioner("spectrumscale.csi.ibm.com", "IBM Storage Scale and Fusion", _capabilities(_SHARED_FILE, _CSI)),
    _provisioner("block.csi.ibm.com", "IBM FlashSystem", _capabilities(_SHARED_BLOCK, _CSI)),
    _provisioner(
        "infinibox-csi-driver",
        "Infinidat InfiniBox",
        None,
        (
            (ParameterMatch(parameter="storage_protocol", any_of=("iscsi", "fc", "nvme")),),
            _capabilities(_SHARED_BLOCK, _CSI),
        ),
        (
            (ParameterMatch(parameter="storage_protocol", any_of=("nfs", "nfs_treeq")),),
            _capabilities(_SHARED_FILE, _CSI),
        ),
    ),
    _provisioner(
        "csi.huawei.com", "Huawei", _capabilities(_ALL_BUT_SHARED_FILE), (_NFS_PROTOCOL, _capabilities(_FILE_SERVER))
    ),
    _provisioner("csi.weka.io", "WEKA", _capabilities(_SHARED_FILE)),
    _provisioner("csi.quobyte.com", "Quobyte", _capabilities((_RWX_FILE,))),
    _provisioner("csi.juicefs.com", "JuiceFS", _capabilities((_RWX_FILE,))),
    _provisioner(
        "csi.nutanix.com",
        "Nutanix",
        _capabilities(_SINGLE),
        ((ParameterMatch(parameter="storageType", any_of=("nutanixfiles",)),), _capabilities((_RWX_FILE,))),
    ),
    _provisioner(
        "csi.san.synology.com",
        "Synology",
        _capabilities(_SINGLE),
        ((ParameterMatch(parameter="protocol", any_of=("smb", "nfs")),), _capabilities((_RWX_FILE,))),
    ),
    _provisioner("org.democratic-csi.nfs", "democratic-csi, NFS", _capabilities((_RWX_FILE,))),
    _provisioner("org.democratic-csi.iscsi", "democratic-csi, iSCSI", _capabilities(_SINGLE)),
)

PROVISIONERS: dict[str, Provisioner] = {one.name: one for one in _KNOWN}

NOT_FOR_DISKS = frozenset(
    {
        "openshift-storage.noobaa.io/obc",
        "openshift-storage.ceph.rook.io/bucket",
        "rook-ceph.ceph.rook.io/bucket",
        "stork-snapshot",
    }
)
"""Provisioners of buckets and the like, whose profiles need not be completed."""
