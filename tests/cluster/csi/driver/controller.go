package driver

import (
	"context"
	"errors"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"cdi.test/cluster/csi/disks"
)

func (d *Driver) ControllerGetCapabilities(context.Context, *csi.ControllerGetCapabilitiesRequest) (*csi.ControllerGetCapabilitiesResponse, error) {
	response := &csi.ControllerGetCapabilitiesResponse{}
	for _, kind := range []csi.ControllerServiceCapability_RPC_Type{
		csi.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME,
		csi.ControllerServiceCapability_RPC_CREATE_DELETE_SNAPSHOT,
		csi.ControllerServiceCapability_RPC_CLONE_VOLUME,
		csi.ControllerServiceCapability_RPC_EXPAND_VOLUME,
		csi.ControllerServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
	} {
		response.Capabilities = append(response.Capabilities, &csi.ControllerServiceCapability{
			Type: &csi.ControllerServiceCapability_Rpc{Rpc: &csi.ControllerServiceCapability_RPC{Type: kind}}})
	}
	return response, nil
}

func (d *Driver) CreateVolume(_ context.Context, request *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	if request.GetName() == "" {
		return nil, missing("the name")
	}
	if err := checkCapabilities(request.GetVolumeCapabilities()); err != nil {
		return nil, err
	}
	required, limit := request.GetCapacityRange().GetRequiredBytes(), request.GetCapacityRange().GetLimitBytes()
	if limit > 0 && disks.RoundUp(required) > limit {
		return nil, status.Errorf(codes.OutOfRange, "volumes are whole MiB: %d bytes do not fit %d", required, limit)
	}
	id := disks.ID(request.GetName())
	defer d.Volumes.Lock(id)()
	source, from, release, err := d.source(request.GetVolumeContentSource())
	if err != nil {
		return nil, err
	}
	defer release()
	volume, err := d.Volumes.Get(id)
	switch {
	case err == nil:
		if volume.Size < disks.RoundUp(required) || (limit > 0 && volume.Size > limit) || volume.Source != source {
			return nil, status.Errorf(codes.AlreadyExists, "%s is there with another size or source", request.GetName())
		}
	case errors.Is(err, disks.ErrNotFound):
		if volume, err = d.create(id, required, source, from); err != nil {
			return nil, failure(err)
		}
	default:
		return nil, failure(err)
	}
	return &csi.CreateVolumeResponse{Volume: &csi.Volume{VolumeId: id, CapacityBytes: volume.Size,
		VolumeContext: request.GetParameters(), ContentSource: request.GetVolumeContentSource()}}, nil
}

func (d *Driver) create(id string, size int64, source string, from *disks.Disk) (volume *disks.Disk, err error) {
	if from == nil {
		return d.Volumes.Create(id, size, nil, "")
	}
	if size == 0 {
		size = from.Size
	}
	device, err := d.Loops.Find(from)
	if err != nil {
		return nil, err
	}
	err = disks.Quiesced(device, func() (err error) {
		volume, err = d.Volumes.Create(id, size, from, source)
		return err
	})
	return volume, err
}

// source finds what a new volume is to be a copy of, and holds it until release is called.
func (d *Driver) source(wanted *csi.VolumeContentSource) (name string, from *disks.Disk, release func(), err error) {
	var store *disks.Store
	var id string
	switch {
	case wanted.GetSnapshot() != nil:
		id, store = wanted.GetSnapshot().GetSnapshotId(), d.Snapshots
		name = "snapshot/" + id
	case wanted.GetVolume() != nil:
		id, store = wanted.GetVolume().GetVolumeId(), d.Volumes
		name = "volume/" + id
	default:
		return "", nil, func() {}, nil
	}
	// Volumes are cloned from older ones only, so that two locks are never taken crosswise.
	release = store.Lock(id)
	if from, err = store.Get(id); err != nil {
		release()
		return "", nil, nil, failure(err)
	}
	return name, from, release, nil
}

func (d *Driver) DeleteVolume(_ context.Context, request *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	id := request.GetVolumeId()
	if id == "" {
		return nil, missing("the volume's id")
	}
	defer d.Volumes.Lock(id)()
	volume, err := d.Volumes.Get(id)
	if errors.Is(err, disks.ErrNotFound) {
		return &csi.DeleteVolumeResponse{}, nil
	}
	if err != nil {
		return nil, failure(err)
	}
	// A pod that has just ended has it mounted for a moment longer.
	device, err := d.Loops.Find(volume)
	if err != nil {
		return nil, failure(err)
	}
	if device != "" {
		return nil, status.Errorf(codes.FailedPrecondition, "volume %s is in use on the node, at %s", id, device)
	}
	return &csi.DeleteVolumeResponse{}, failure(d.Volumes.Delete(id))
}

func (d *Driver) ValidateVolumeCapabilities(_ context.Context, request *csi.ValidateVolumeCapabilitiesRequest) (*csi.ValidateVolumeCapabilitiesResponse, error) {
	if request.GetVolumeId() == "" {
		return nil, missing("the volume's id")
	}
	if len(request.GetVolumeCapabilities()) == 0 {
		return nil, missing("the capabilities")
	}
	if _, err := d.Volumes.Get(request.GetVolumeId()); err != nil {
		return nil, failure(err)
	}
	if err := checkCapabilities(request.GetVolumeCapabilities()); err != nil {
		return &csi.ValidateVolumeCapabilitiesResponse{Message: err.Error()}, nil
	}
	return &csi.ValidateVolumeCapabilitiesResponse{Confirmed: &csi.ValidateVolumeCapabilitiesResponse_Confirmed{
		VolumeCapabilities: request.GetVolumeCapabilities()}}, nil
}

func (d *Driver) CreateSnapshot(_ context.Context, request *csi.CreateSnapshotRequest) (*csi.CreateSnapshotResponse, error) {
	if request.GetName() == "" {
		return nil, missing("the name")
	}
	if request.GetSourceVolumeId() == "" {
		return nil, missing("the source volume's id")
	}
	id := disks.ID(request.GetName())
	defer d.Snapshots.Lock(id)()
	defer d.Volumes.Lock(request.GetSourceVolumeId())()
	source := "volume/" + request.GetSourceVolumeId()
	snapshot, err := d.Snapshots.Get(id)
	switch {
	case err == nil:
		if snapshot.Source != source {
			return nil, status.Errorf(codes.AlreadyExists, "%s is a snapshot of another volume", request.GetName())
		}
	case errors.Is(err, disks.ErrNotFound):
		if snapshot, err = d.snapshot(id, source, request.GetSourceVolumeId()); err != nil {
			return nil, failure(err)
		}
	default:
		return nil, failure(err)
	}
	return &csi.CreateSnapshotResponse{Snapshot: &csi.Snapshot{SnapshotId: id, SourceVolumeId: request.GetSourceVolumeId(),
		SizeBytes: snapshot.Size, CreationTime: timestamppb.New(snapshot.Created), ReadyToUse: true}}, nil
}

func (d *Driver) snapshot(id, source, volumeID string) (snapshot *disks.Disk, err error) {
	volume, err := d.Volumes.Get(volumeID)
	if err != nil {
		return nil, err
	}
	device, err := d.Loops.Find(volume)
	if err != nil {
		return nil, err
	}
	err = disks.Quiesced(device, func() (err error) {
		snapshot, err = d.Snapshots.Create(id, volume.Size, volume, source)
		return err
	})
	return snapshot, err
}

func (d *Driver) DeleteSnapshot(_ context.Context, request *csi.DeleteSnapshotRequest) (*csi.DeleteSnapshotResponse, error) {
	if request.GetSnapshotId() == "" {
		return nil, missing("the snapshot's id")
	}
	defer d.Snapshots.Lock(request.GetSnapshotId())()
	return &csi.DeleteSnapshotResponse{}, failure(d.Snapshots.Delete(request.GetSnapshotId()))
}

func (d *Driver) ControllerExpandVolume(_ context.Context, request *csi.ControllerExpandVolumeRequest) (*csi.ControllerExpandVolumeResponse, error) {
	if request.GetVolumeId() == "" {
		return nil, missing("the volume's id")
	}
	if request.GetCapacityRange() == nil {
		return nil, missing("the capacity")
	}
	defer d.Volumes.Lock(request.GetVolumeId())()
	volume, err := d.Volumes.Get(request.GetVolumeId())
	if err != nil {
		return nil, failure(err)
	}
	size, limit := disks.RoundUp(request.GetCapacityRange().GetRequiredBytes()), request.GetCapacityRange().GetLimitBytes()
	if limit > 0 && size > limit {
		return nil, status.Errorf(codes.OutOfRange, "volumes are whole MiB: %d does not fit %d", size, limit)
	}
	if err := d.Volumes.Grow(volume, size); err != nil {
		return nil, failure(err)
	}
	return &csi.ControllerExpandVolumeResponse{CapacityBytes: volume.Size, NodeExpansionRequired: true}, nil
}

// checkCapabilities: any access mode will do, because there is one node.
func checkCapabilities(capabilities []*csi.VolumeCapability) error {
	if len(capabilities) == 0 {
		return missing("the capabilities")
	}
	for _, capability := range capabilities {
		if capability.GetBlock() == nil && capability.GetMount() == nil {
			return status.Error(codes.InvalidArgument, "a volume is mounted or a block device")
		}
		switch kind := capability.GetMount().GetFsType(); kind {
		case "", "ext4", "xfs":
		default:
			return status.Errorf(codes.InvalidArgument, "file system %q: only ext4 and xfs are made here", kind)
		}
	}
	return nil
}
