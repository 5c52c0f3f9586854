package driver_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/kubernetes-csi/csi-test/v5/pkg/sanity"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"cdi.test/cluster/csi/disks"
	"cdi.test/cluster/csi/driver"
)

// unhurried connects no sooner than sanity watches the connection: it never notices one that was ready before.
type unhurried struct {
	credentials.TransportCredentials
}

func (u unhurried) ClientHandshake(ctx context.Context, authority string, connection net.Conn) (net.Conn, credentials.AuthInfo, error) {
	time.Sleep(200 * time.Millisecond)
	return u.TransportCredentials.ClientHandshake(ctx, authority, connection)
}

func (u unhurried) Clone() credentials.TransportCredentials {
	return unhurried{u.TransportCredentials.Clone()}
}

// The CSI project's own conformance tests, over real loop devices and mounts.
func TestConformance(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it mounts file systems from loop devices")
	}
	directory := t.TempDir()
	volumes, err := disks.NewStore(filepath.Join(directory, "volumes"))
	if err != nil {
		t.Fatal(err)
	}
	snapshots, err := disks.NewStore(filepath.Join(directory, "snapshots"))
	if err != nil {
		t.Fatal(err)
	}
	served := &driver.Driver{Name: "conformance.cdi.test", Node: "node", Volumes: volumes, Snapshots: snapshots,
		Loops: disks.Loops{Tag: "cdi-csi-conformance"}}
	socket := filepath.Join(directory, "csi.sock")
	go func() {
		if err := served.Serve(socket, ""); err != nil {
			t.Errorf("the driver ended: %v", err)
		}
	}()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if connection, err := net.Dial("unix", socket); err == nil {
			connection.Close()
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the driver did not begin to listen")
		}
	}
	config := sanity.NewTestConfig()
	config.Address = "unix://" + socket
	config.TargetPath = filepath.Join(directory, "target")
	config.StagingPath = filepath.Join(directory, "staging")
	config.TestVolumeSize = 16 * disks.MiB
	config.TestVolumeExpandSize = 32 * disks.MiB
	dial := []grpc.DialOption{grpc.WithTransportCredentials(unhurried{insecure.NewCredentials()})}
	config.DialOptions, config.ControllerDialOptions = dial, dial
	sanity.Test(t, config)
}

// A volume that was deleted under a pod must not keep the pod from being taken away.
func TestWhatIsGoneIsTakenAwayAllTheSame(t *testing.T) {
	directory := t.TempDir()
	volumes, err := disks.NewStore(filepath.Join(directory, "volumes"))
	if err != nil {
		t.Fatal(err)
	}
	served := &driver.Driver{Volumes: volumes, Loops: disks.Loops{Tag: "cdi-csi-gone"}}
	target := filepath.Join(directory, "target")
	if err := os.Mkdir(target, 0o750); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		_, err := served.NodeUnpublishVolume(t.Context(), &csi.NodeUnpublishVolumeRequest{
			VolumeId: "gone", TargetPath: target})
		if err != nil {
			t.Errorf("it is not unpublished: %v", err)
		}
		if _, err := os.Stat(target); !os.IsNotExist(err) {
			t.Errorf("the target path is left: %v", err)
		}
		_, err = served.NodeUnstageVolume(t.Context(), &csi.NodeUnstageVolumeRequest{
			VolumeId: "gone", StagingTargetPath: filepath.Join(directory, "staging")})
		if err != nil {
			t.Errorf("it is not unstaged: %v", err)
		}
	}
}
