package driver

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"cdi.test/cluster/csi/disks"
)

func (d *Driver) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	return &csi.NodeGetInfoResponse{NodeId: d.Node}, nil
}

func (d *Driver) NodeGetCapabilities(context.Context, *csi.NodeGetCapabilitiesRequest) (*csi.NodeGetCapabilitiesResponse, error) {
	response := &csi.NodeGetCapabilitiesResponse{}
	for _, kind := range []csi.NodeServiceCapability_RPC_Type{
		csi.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME,
		csi.NodeServiceCapability_RPC_EXPAND_VOLUME,
		csi.NodeServiceCapability_RPC_GET_VOLUME_STATS,
		csi.NodeServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
	} {
		response.Capabilities = append(response.Capabilities, &csi.NodeServiceCapability{
			Type: &csi.NodeServiceCapability_Rpc{Rpc: &csi.NodeServiceCapability_RPC{Type: kind}}})
	}
	return response, nil
}

// checkNode refuses a node request that lacks what all of them need, and finds its volume.
func (d *Driver) checkNode(id, what, path string, capability *csi.VolumeCapability) (*disks.Disk, error) {
	switch {
	case id == "":
		return nil, missing("the volume's id")
	case path == "":
		return nil, missing("the " + what)
	case capability == nil:
		return nil, missing("the capability")
	}
	volume, err := d.Volumes.Get(id)
	return volume, failure(err)
}

func (d *Driver) NodeStageVolume(_ context.Context, request *csi.NodeStageVolumeRequest) (*csi.NodeStageVolumeResponse, error) {
	defer d.Volumes.Lock(request.GetVolumeId())()
	capability, path := request.GetVolumeCapability(), request.GetStagingTargetPath()
	volume, err := d.checkNode(request.GetVolumeId(), "staging path", path, capability)
	if err != nil {
		return nil, err
	}
	device, err := d.Loops.Attach(volume)
	if err != nil {
		return nil, failure(err)
	}
	if capability.GetBlock() != nil {
		return &csi.NodeStageVolumeResponse{}, nil
	}
	if there, err := disks.Mounted(path); there || err != nil {
		return &csi.NodeStageVolumeResponse{}, failure(err)
	}
	if err := disks.Resize(device); err != nil {
		return nil, failure(err)
	}
	kind, err := disks.Format(device, capability.GetMount().GetFsType())
	if err != nil {
		return nil, failure(err)
	}
	if err := disks.Check(device, kind); err != nil {
		return nil, failure(err)
	}
	if err := os.MkdirAll(path, 0o750); err != nil {
		return nil, failure(err)
	}
	if err := disks.MountDevice(device, path, kind, capability.GetMount().GetMountFlags()); err != nil {
		return nil, failure(err)
	}
	if kind == "xfs" { // which is grown only while it is mounted
		if err := disks.GrowMounted(device, path); err != nil {
			return nil, failure(err)
		}
	}
	return &csi.NodeStageVolumeResponse{}, nil
}

func (d *Driver) NodeUnstageVolume(_ context.Context, request *csi.NodeUnstageVolumeRequest) (*csi.NodeUnstageVolumeResponse, error) {
	if request.GetVolumeId() == "" {
		return nil, missing("the volume's id")
	}
	if request.GetStagingTargetPath() == "" {
		return nil, missing("the staging path")
	}
	defer d.Volumes.Lock(request.GetVolumeId())()
	if err := disks.Unmount(request.GetStagingTargetPath()); err != nil {
		return nil, failure(err)
	}
	volume, err := d.Volumes.Get(request.GetVolumeId())
	if errors.Is(err, disks.ErrNotFound) {
		// Of a disk that is gone nothing is attached.  The kubelet asks until it hears that this is so.
		return &csi.NodeUnstageVolumeResponse{}, nil
	}
	if err != nil {
		return nil, failure(err)
	}
	return &csi.NodeUnstageVolumeResponse{}, failure(d.Loops.Detach(volume))
}

func (d *Driver) NodePublishVolume(_ context.Context, request *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	defer d.Volumes.Lock(request.GetVolumeId())()
	capability, path := request.GetVolumeCapability(), request.GetTargetPath()
	volume, err := d.checkNode(request.GetVolumeId(), "target path", path, capability)
	if err != nil {
		return nil, err
	}
	if request.GetStagingTargetPath() == "" {
		return nil, status.Error(codes.FailedPrecondition, "the staging path is missing")
	}
	if there, err := disks.Mounted(path); there || err != nil {
		return &csi.NodePublishVolumeResponse{}, failure(err)
	}
	source := request.GetStagingTargetPath()
	if capability.GetBlock() != nil {
		if source, err = d.Loops.Attach(volume); err != nil {
			return nil, failure(err)
		}
		err = makeFile(path)
	} else {
		err = os.MkdirAll(path, 0o750)
	}
	if err != nil {
		return nil, failure(err)
	}
	return &csi.NodePublishVolumeResponse{}, failure(disks.Bind(source, path, request.GetReadonly()))
}

// makeFile makes what a device is bound to.
func makeFile(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return err
	}
	file, err := os.OpenFile(path, os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	return file.Close()
}

func (d *Driver) NodeUnpublishVolume(_ context.Context, request *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	if request.GetVolumeId() == "" {
		return nil, missing("the volume's id")
	}
	if request.GetTargetPath() == "" {
		return nil, missing("the target path")
	}
	defer d.Volumes.Lock(request.GetVolumeId())()
	// Whether the disk is there still does not matter: a pod is never taken away before this went well.
	if err := disks.Unmount(request.GetTargetPath()); err != nil {
		return nil, failure(err)
	}
	if err := os.Remove(request.GetTargetPath()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, failure(err)
	}
	return &csi.NodeUnpublishVolumeResponse{}, nil
}

func (d *Driver) NodeExpandVolume(_ context.Context, request *csi.NodeExpandVolumeRequest) (*csi.NodeExpandVolumeResponse, error) {
	if request.GetVolumeId() == "" {
		return nil, missing("the volume's id")
	}
	path := request.GetVolumePath()
	if path == "" {
		return nil, missing("the volume's path")
	}
	defer d.Volumes.Lock(request.GetVolumeId())()
	volume, err := d.Volumes.Get(request.GetVolumeId())
	if err != nil {
		return nil, failure(err)
	}
	device, err := d.Loops.Find(volume)
	if err != nil {
		return nil, failure(err)
	}
	if device == "" {
		return nil, status.Errorf(codes.NotFound, "%s is not attached to this node", volume.ID)
	}
	if err := disks.Resize(device); err != nil {
		return nil, failure(err)
	}
	if info, err := os.Stat(path); request.GetVolumeCapability().GetBlock() == nil && err == nil && info.IsDir() {
		if err := disks.GrowMounted(device, path); err != nil {
			// The kubelet then leaves it until nothing uses the volume, and staging grows it.
			return nil, status.Errorf(codes.FailedPrecondition, "it cannot be grown while it is mounted: %v", err)
		}
	}
	return &csi.NodeExpandVolumeResponse{CapacityBytes: volume.Size}, nil
}

func (d *Driver) NodeGetVolumeStats(_ context.Context, request *csi.NodeGetVolumeStatsRequest) (*csi.NodeGetVolumeStatsResponse, error) {
	if request.GetVolumeId() == "" {
		return nil, missing("the volume's id")
	}
	if request.GetVolumePath() == "" {
		return nil, missing("the volume's path")
	}
	volume, err := d.Volumes.Get(request.GetVolumeId())
	if err != nil {
		return nil, failure(err)
	}
	info, err := os.Stat(request.GetVolumePath())
	if err != nil {
		return nil, status.Error(codes.NotFound, err.Error())
	}
	if !info.IsDir() {
		return &csi.NodeGetVolumeStatsResponse{Usage: []*csi.VolumeUsage{
			{Unit: csi.VolumeUsage_BYTES, Total: volume.Size}}}, nil
	}
	var now unix.Statfs_t
	if err := unix.Statfs(request.GetVolumePath(), &now); err != nil {
		return nil, failure(err)
	}
	return &csi.NodeGetVolumeStatsResponse{Usage: []*csi.VolumeUsage{
		{Unit: csi.VolumeUsage_BYTES, Total: int64(now.Blocks) * now.Bsize, Available: int64(now.Bavail) * now.Bsize,
			Used: int64(now.Blocks-now.Bfree) * now.Bsize},
		{Unit: csi.VolumeUsage_INODES, Total: int64(now.Files), Available: int64(now.Ffree), Used: int64(now.Files - now.Ffree)},
	}}, nil
}
