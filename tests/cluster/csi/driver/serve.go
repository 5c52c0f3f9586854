package driver

import (
	"context"
	"errors"
	"io/fs"
	"log"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// Socket is where the driver answers CSI requests, below the kubelet's directory.
func (d *Driver) Socket(kubelet string) string {
	return filepath.Join(kubelet, "plugins", d.Name, "csi.sock")
}

// Serve answers CSI requests and, when kubelet is not "", tells the kubelet of itself.  It returns only on a failure.
func (d *Driver) Serve(socket, kubelet string) error {
	server := grpc.NewServer(grpc.UnaryInterceptor(logged))
	csi.RegisterIdentityServer(server, d)
	csi.RegisterControllerServer(server, d)
	csi.RegisterNodeServer(server, d)
	listener, err := listen(socket)
	if err != nil {
		return err
	}
	log.Printf("%s answers at %s", d.Name, socket)
	if kubelet == "" {
		return server.Serve(listener)
	}
	ended := make(chan error, 2)
	go func() { ended <- server.Serve(listener) }()
	go func() { ended <- d.register(filepath.Join(kubelet, "plugins_registry", d.Name+"-reg.sock"), socket) }()
	return <-ended
}

// register offers the driver to the kubelet at path.  A kubelet that could not register it, such as one that began while the
// API server was away, does not look at the same socket again: it is offered a new one.
func (d *Driver) register(path, socket string) error {
	for {
		registry, err := listen(path)
		if err != nil {
			return err
		}
		registrar, refused := grpc.NewServer(), make(chan struct{}, 1)
		registration.RegisterRegistrationServer(registrar, &plugin{driver: d, socket: socket, refused: refused})
		served := make(chan error, 1)
		go func() { served <- registrar.Serve(registry) }()
		select {
		case err := <-served:
			return err
		case <-refused:
			registrar.GracefulStop()
		}
		time.Sleep(time.Second)
	}
}

func listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return net.Listen("unix", path)
}

// logged writes a line for each request that does or refuses something.
func logged(ctx context.Context, request any, call *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	began := time.Now()
	response, err := handle(ctx, request)
	name := filepath.Base(call.FullMethod)
	if err != nil {
		log.Printf("%s: %v", name, err)
	} else if !strings.Contains(name, "Get") && name != "Probe" {
		log.Printf("%s: %v", name, time.Since(began).Round(time.Millisecond))
	}
	return response, err
}

// plugin is the kubelet's view of the driver: its plugin registration, version 1.
type plugin struct {
	registration.UnimplementedRegistrationServer
	driver  *Driver
	socket  string
	refused chan<- struct{}
}

func (p *plugin) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{Type: registration.CSIPlugin, Name: p.driver.Name, Endpoint: p.socket,
		SupportedVersions: []string{"1.0.0"}}, nil
}

func (p *plugin) NotifyRegistrationStatus(_ context.Context, status *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	if !status.GetPluginRegistered() {
		log.Printf("the kubelet did not register the driver: %s", status.GetError())
		select {
		case p.refused <- struct{}{}:
		default: // it is being offered anew already
		}
	}
	return &registration.RegistrationStatusResponse{}, nil
}
