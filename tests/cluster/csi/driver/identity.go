// Package driver is a CSI driver whose volumes are sparse files on the node: mounted ext4 or xfs, or the loop device as
// it is; with snapshots, clones and growth.  It follows the Container Storage Interface, version 1.11.
package driver

import (
	"context"
	"errors"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"cdi.test/cluster/csi/disks"
)

// Driver serves one node's volumes.
type Driver struct {
	csi.UnimplementedIdentityServer
	csi.UnimplementedControllerServer
	csi.UnimplementedNodeServer

	Name      string // as in CSIDriver and StorageClass.provisioner
	Node      string
	Volumes   *disks.Store
	Snapshots *disks.Store
	Loops     disks.Loops
}

func (d *Driver) GetPluginInfo(context.Context, *csi.GetPluginInfoRequest) (*csi.GetPluginInfoResponse, error) {
	return &csi.GetPluginInfoResponse{Name: d.Name, VendorVersion: "1"}, nil
}

func (d *Driver) Probe(context.Context, *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	return &csi.ProbeResponse{Ready: wrapperspb.Bool(true)}, nil
}

func (d *Driver) GetPluginCapabilities(context.Context, *csi.GetPluginCapabilitiesRequest) (*csi.GetPluginCapabilitiesResponse, error) {
	return &csi.GetPluginCapabilitiesResponse{Capabilities: []*csi.PluginCapability{
		{Type: &csi.PluginCapability_Service_{Service: &csi.PluginCapability_Service{
			Type: csi.PluginCapability_Service_CONTROLLER_SERVICE}}},
		{Type: &csi.PluginCapability_VolumeExpansion_{VolumeExpansion: &csi.PluginCapability_VolumeExpansion{
			Type: csi.PluginCapability_VolumeExpansion_ONLINE}}},
	}}, nil
}

// failure maps what a store or the system said to the code that CSI wants for it.
func failure(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, disks.ErrNotFound):
		return status.Error(codes.NotFound, err.Error())
	case errors.Is(err, disks.ErrTooLarge):
		return status.Error(codes.OutOfRange, err.Error())
	default:
		return status.Error(codes.Internal, err.Error())
	}
}

func missing(what string) error { return status.Error(codes.InvalidArgument, what+" is missing") }
