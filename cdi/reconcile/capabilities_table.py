"""Capabilities of well-known provisioners.

Names, modes, clone strategies and minimum sizes agree with those of KubeVirt's CDI (its package storagecapabilities),
so that a volume gets the same settings with either. For the additional provisioners only what every volume of the
driver supports is listed. Tuples are in order of preference.
"""

from __future__ import annotations

from cdi.api.claims import AccessMode, VolumeMode
from cdi.api.storageprofile import CloneStrategy, CronSourceFormat
from cdi.reconcile.capabilities import Capabilities, PropertySet, Provisioner, Variant, When

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
_NFS = (When(parameter=_FSTYPE, any_of=("nfs",)),)
_NFS_PROTOCOL = (When(parameter="protocol", any_of=("nfs",)),)
# Portworx exports a volume to many nodes through NFS if these mount options are set.
_PORTWORX_NFS = (When(parameter="sharedv4_mount_options", includes=("vers=3.0", "nolock")),)


def _can(
    sets: tuple[PropertySet, ...],
    clone: CloneStrategy | None = None,
    cron: CronSourceFormat | None = None,
    minimum: str | None = None,
) -> Capabilities:
    return Capabilities(sets=sets, clone=clone, cron=cron, minimum=minimum)


def _known(
    name: str, product: str, otherwise: Capabilities | None, *variants: tuple[tuple[When, ...], Capabilities]
) -> Provisioner:
    return Provisioner(
        name=name,
        product=product,
        otherwise=otherwise,
        variants=tuple(Variant(when=when, capabilities=capabilities) for when, capabilities in variants),
    )


_PORTWORX = (_RWX_BLOCK, _RWX_FILE, _RWO_BLOCK, _RWO_FILE)
_TRIDENT_SNAPSHOTS = (_SNAPSHOT, _CRON_SNAPSHOT)

_KNOWN: tuple[Provisioner, ...] = (
    # --- directories of a node ---
    _known("kubevirt.io.hostpath-provisioner", "KubeVirt hostpath (CSI)", _can((_RWO_FILE,))),
    _known("kubevirt.io/hostpath-provisioner", "KubeVirt hostpath", _can((_RWO_FILE,))),
    _known("k8s.io/minikube-hostpath", "minikube", _can((_RWO_FILE,))),
    _known("rancher.io/local-path", "local-path (k3s)", _can((_RWO_FILE,))),
    _known("microk8s.io/hostpath", "MicroK8s hostpath", _can((_RWO_FILE,))),
    _known("docker.io/hostpath", "Docker Desktop", _can((_RWO_FILE,))),
    # --- file servers ---
    _known("nfs.csi.k8s.io", "NFS (CSI)", _can((_RWX_FILE,))),
    _known("k8s-sigs.io/nfs-subdir-external-provisioner", "NFS subdirectories", _can((_RWX_FILE,))),
    _known("smb.csi.k8s.io", "SMB (CSI)", _can((_RWX_FILE,))),
    # --- Ceph ---
    _known("kubernetes.io/rbd", "Ceph RBD, in tree", _can(_SHARED_BLOCK)),
    _known("rbd.csi.ceph.com", "Ceph RBD", _can(_SHARED_BLOCK)),
    _known("rook-ceph.rbd.csi.ceph.com", "Ceph RBD (Rook)", _can(_SHARED_BLOCK, _CSI, _CRON_SNAPSHOT)),
    _known("openshift-storage.rbd.csi.ceph.com", "Ceph RBD (ODF)", _can(_SHARED_BLOCK, _CSI, _CRON_SNAPSHOT)),
    _known("cephfs.csi.ceph.com", "CephFS", _can((_RWX_FILE,), _CSI)),
    _known("rook-ceph.cephfs.csi.ceph.com", "CephFS (Rook)", _can((_RWX_FILE,), _CSI)),
    _known("openshift-storage.cephfs.csi.ceph.com", "CephFS (ODF)", _can((_RWX_FILE,), _CSI)),
    # --- replicated and local block devices ---
    _known("linstor.csi.linbit.com", "LINSTOR", _can(_ALL_BUT_SHARED_FILE)),
    _known(
        "driver.longhorn.io",
        "Longhorn",
        _can((_RWO_BLOCK,)),
        ((When(parameter="migratable", any_of=("true",)),), _can((_RWX_BLOCK, _RWO_BLOCK))),
        ((When(parameter="nfsOptions"),), _can(_SHARED_FILE)),
        ((When(parameter="fsType"),), _can((_RWO_FILE,))),
    ),
    _known("topolvm.cybozu.com", "TopoLVM, before 0.15", _can(_SINGLE, _COPY)),
    _known("topolvm.io", "TopoLVM", _can(_SINGLE, _COPY)),
    _known("kubesan.gitlab.io", "KubeSAN", _can((_RWX_BLOCK, _ROX_BLOCK, _RWO_BLOCK, _RWO_FILE), _CSI)),
    _known("kubernetes.io/storageos", "StorageOS, in tree", _can((_RWO_FILE,))),
    _known("storageos", "StorageOS", _can((_RWO_FILE,))),
    _known("local.csi.openebs.io", "OpenEBS LVM", _can(_SINGLE)),
    _known("zfs.csi.openebs.io", "OpenEBS ZFS", _can(_SINGLE)),
    _known("openebs.io/local", "OpenEBS hostpath and device", _can((_RWO_FILE,))),
    _known("openebs.io/nfsrwx", "OpenEBS NFS", _can(_SHARED_FILE)),
    _known("cstor.csi.openebs.io", "OpenEBS cStor", _can(_SINGLE)),
    _known("io.openebs.csi-mayastor", "OpenEBS Mayastor", _can(_SINGLE)),
    _known("csi.storpool.com", "StorPool", _can(_SINGLE)),
    # --- Amazon ---
    _known("kubernetes.io/aws-ebs", "Amazon EBS, in tree", _can((_RWO_BLOCK,))),
    _known(
        "ebs.csi.aws.com",
        "Amazon EBS",
        _can((_RWO_BLOCK,)),
        ((When(parameter="type", any_of=("io1",)),), _can((_RWO_BLOCK,), minimum="4Gi")),
        ((When(parameter="type", any_of=("io2",)),), _can(_SHARED_BLOCK, minimum="4Gi")),
        ((When(parameter="type", any_of=("gp2", "gp3")),), _can((_RWO_BLOCK,), minimum="1Gi")),
    ),
    _known("efs.csi.aws.com", "Amazon EFS", _can(_SHARED_FILE)),
    _known("fsx.csi.aws.com", "Amazon FSx for Lustre", _can((_RWX_FILE,))),
    _known("fsx.openzfs.csi.aws.com", "Amazon FSx for OpenZFS", _can((_RWX_FILE,))),
    # --- Microsoft ---
    _known("kubernetes.io/azure-disk", "Azure disk, in tree", _can((_RWO_BLOCK,))),
    _known("disk.csi.azure.com", "Azure disk", _can((_RWO_BLOCK,))),
    _known("kubernetes.io/azure-file", "Azure file, in tree", _can((_RWX_FILE,))),
    _known("file.csi.azure.com", "Azure file", _can((_RWX_FILE,))),
    # --- Google ---
    _known("kubernetes.io/gce-pd", "Google persistent disk, in tree", _can((_RWO_BLOCK,))),
    _known(
        "pd.csi.storage.gke.io",
        "Google persistent disk",
        _can((_RWO_BLOCK,), _SNAPSHOT, _CRON_SNAPSHOT),
        (
            (When(parameter="type", any_of=("hyperdisk-balanced", "hyperdisk-balanced-high-availability")),),
            _can(_SHARED_BLOCK, _SNAPSHOT, _CRON_SNAPSHOT, "4Gi"),
        ),
    ),
    _known("filestore.csi.storage.gke.io", "Google Filestore", _can((_RWX_FILE,))),
    # --- other clouds ---
    _known("blockvolume.csi.oraclecloud.com", "Oracle block volume", _can(_SHARED_BLOCK)),
    _known("cinder.csi.openstack.org", "OpenStack Cinder", _can(_SINGLE)),
    _known("manila.csi.openstack.org", "OpenStack Manila", _can((_RWX_FILE,))),
    _known("csi.ovirt.org", "oVirt", _can(_SINGLE)),
    _known("csi.hetzner.cloud", "Hetzner Cloud volumes", _can(_SINGLE)),
    _known("dobs.csi.digitalocean.com", "DigitalOcean volumes", _can(_SINGLE)),
    _known("linodebs.csi.linode.com", "Akamai (Linode) volumes", _can(_SINGLE)),
    _known("diskplugin.csi.alibabacloud.com", "Alibaba Cloud disk", _can(_SINGLE)),
    # --- VMware ---
    _known(
        "csi.vsphere.vmware.com",
        "vSphere",
        _can(_SINGLE),
        ((When(parameter=_FSTYPE, part="nfs"),), _can((_RWX_FILE, _RWO_BLOCK, _RWO_FILE))),
    ),
    # --- Dell ---
    _known(
        "csi-unity.dellemc.com",
        "Dell Unity XT",
        _can(_ALL_BUT_SHARED_FILE),
        (_NFS_PROTOCOL, _can(_FILE_SERVER)),
    ),
    _known("csi-vxflexos.dellemc.com", "Dell PowerFlex", _can(_ALL_BUT_SHARED_FILE, _CSI), (_NFS, _can(_FILE_SERVER))),
    _known("csi-isilon.dellemc.com", "Dell PowerScale", _can(_FILE_SERVER, _CSI)),
    _known("csi-powermax.dellemc.com", "Dell PowerMax", _can(_ALL_BUT_FILE_FOR_MANY, _CSI), (_NFS, _can(_FILE_SERVER))),
    _known(
        "csi-powerstore.dellemc.com",
        "Dell PowerStore",
        _can(_ALL_BUT_FILE_FOR_MANY, _COPY),
        (_NFS, _can(_FILE_SERVER)),
    ),
    # --- NetApp ---
    _known(
        "csi.trident.netapp.io",
        "NetApp Trident",
        None,
        ((When(parameter="backendType", prefix="ontap-nas"),), _can(_SHARED_FILE, *_TRIDENT_SNAPSHOTS)),
        ((When(parameter="backendType", prefix="ontap-san"),), _can((_RWX_BLOCK,), *_TRIDENT_SNAPSHOTS)),
        (
            (
                When(parameter="backendType", any_of=("google-cloud-netapp-volumes",)),
                When(parameter="selector", includes=("performance=flex",)),
            ),
            _can(_SHARED_FILE, *_TRIDENT_SNAPSHOTS, "1Gi"),
        ),
    ),
    _known("beegfs.csi.netapp.com", "BeeGFS", _can((_RWX_FILE,))),
    # --- Pure Storage, Portworx ---
    _known("kubernetes.io/portworx-volume", "Portworx, in tree", _can(_PORTWORX), (_PORTWORX_NFS, _can(_SHARED_FILE))),
    _known(
        "pxd.portworx.com",
        "Portworx",
        _can(_PORTWORX, _CSI),
        ((When(parameter="backend", any_of=("pure_block",)),), _can(_SHARED_BLOCK)),
        ((When(parameter="backend", any_of=("pure_fa_file",)),), _can(_SHARED_FILE)),
        ((When(parameter="backend"),), _can(_PORTWORX, _CSI)),
        (_PORTWORX_NFS, _can(_SHARED_FILE, _CSI)),
    ),
    _known(
        "pure-csi",
        "Pure Service Orchestrator",
        _can(_SINGLE),
        ((When(parameter="backend", any_of=("file",)),), _can((_RWX_FILE,))),
    ),
    # --- other storage vendors ---
    _known("hspc.csi.hitachi.com", "Hitachi", _can(_SHARED_BLOCK, _CSI)),
    _known("csi.hpe.com", "HPE", _can(_SHARED_BLOCK, _CSI)),
    _known("spectrumscale.csi.ibm.com", "IBM Storage Scale and Fusion", _can(_SHARED_FILE, _CSI)),
    _known("block.csi.ibm.com", "IBM FlashSystem", _can(_SHARED_BLOCK, _CSI)),
    _known(
        "infinibox-csi-driver",
        "Infinidat InfiniBox",
        None,
        ((When(parameter="storage_protocol", any_of=("iscsi", "fc", "nvme")),), _can(_SHARED_BLOCK, _CSI)),
        ((When(parameter="storage_protocol", any_of=("nfs", "nfs_treeq")),), _can(_SHARED_FILE, _CSI)),
    ),
    _known("csi.huawei.com", "Huawei", _can(_ALL_BUT_SHARED_FILE), (_NFS_PROTOCOL, _can(_FILE_SERVER))),
    _known("csi.weka.io", "WEKA", _can(_SHARED_FILE)),
    _known("csi.quobyte.com", "Quobyte", _can((_RWX_FILE,))),
    _known("csi.juicefs.com", "JuiceFS", _can((_RWX_FILE,))),
    _known(
        "csi.nutanix.com",
        "Nutanix",
        _can(_SINGLE),
        ((When(parameter="storageType", any_of=("nutanixfiles",)),), _can((_RWX_FILE,))),
    ),
    _known(
        "csi.san.synology.com",
        "Synology",
        _can(_SINGLE),
        ((When(parameter="protocol", any_of=("smb", "nfs")),), _can((_RWX_FILE,))),
    ),
    _known("org.democratic-csi.nfs", "democratic-csi, NFS", _can((_RWX_FILE,))),
    _known("org.democratic-csi.iscsi", "democratic-csi, iSCSI", _can(_SINGLE)),
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
