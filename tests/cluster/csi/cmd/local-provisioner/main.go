// Command local-provisioner makes "local" PersistentVolumes out of sparse files: storage without a CSI driver, as older
// provisioners bring it, with neither snapshots nor clones nor growth.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"

	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v11/controller"

	"cdi.test/cluster/csi/disks"
)

type provisioner struct {
	node  string
	disks *disks.Store
	loops disks.Loops
}

// SupportsBlock makes it a controller.BlockProvisioner.
func (p *provisioner) SupportsBlock(context.Context) bool { return true }

// ShouldProvision makes it a controller.Qualifier: an empty volume is wrong for a claim that is to be filled from
// something, so that one waits for whoever can do it.
func (p *provisioner) ShouldProvision(_ context.Context, claim *core.PersistentVolumeClaim) bool {
	return claim.Spec.DataSource == nil && claim.Spec.DataSourceRef == nil
}

// Provision makes the disk and its loop device.  The kubelet makes the file system when a volume is to have one.
func (p *provisioner) Provision(_ context.Context, options controller.ProvisionOptions) (*core.PersistentVolume, controller.ProvisioningState, error) {
	claim := options.PVC
	if claim.Spec.Selector != nil {
		return nil, controller.ProvisioningFinished, errors.New("claims with a selector are not provisioned")
	}
	defer p.disks.Lock(options.PVName)()
	requested := claim.Spec.Resources.Requests[core.ResourceStorage]
	disk, err := p.disks.Get(options.PVName)
	if errors.Is(err, disks.ErrNotFound) {
		disk, err = p.disks.Create(options.PVName, requested.Value(), nil, "")
	}
	if err != nil {
		return nil, controller.ProvisioningFinished, err
	}
	device, err := p.loops.Attach(disk)
	if err != nil {
		return nil, controller.ProvisioningFinished, err
	}
	return &core.PersistentVolume{
		ObjectMeta: meta.ObjectMeta{Name: options.PVName},
		Spec: core.PersistentVolumeSpec{
			PersistentVolumeReclaimPolicy: *options.StorageClass.ReclaimPolicy,
			AccessModes:                   claim.Spec.AccessModes,
			VolumeMode:                    claim.Spec.VolumeMode,
			MountOptions:                  options.StorageClass.MountOptions,
			Capacity:                      core.ResourceList{core.ResourceStorage: *resource.NewQuantity(disk.Size, resource.BinarySI)},
			PersistentVolumeSource:        core.PersistentVolumeSource{Local: &core.LocalVolumeSource{Path: device}},
			NodeAffinity: &core.VolumeNodeAffinity{Required: &core.NodeSelector{NodeSelectorTerms: []core.NodeSelectorTerm{{
				MatchExpressions: []core.NodeSelectorRequirement{{Key: core.LabelHostname, Operator: core.NodeSelectorOpIn,
					Values: []string{p.node}}}}}}},
		},
	}, controller.ProvisioningFinished, nil
}

// Delete takes the loop device and the file away.
func (p *provisioner) Delete(_ context.Context, volume *core.PersistentVolume) error {
	defer p.disks.Lock(volume.Name)()
	disk, err := p.disks.Get(volume.Name)
	if errors.Is(err, disks.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := p.loops.Detach(disk); err != nil {
		return err
	}
	return p.disks.Delete(volume.Name)
}

func run() error {
	name := flag.String("name", "", "the provisioner's name, as in StorageClass.provisioner")
	node := flag.String("node", "", "the node's name")
	state := flag.String("state", "", "directory of volumes")
	tag := flag.String("tag", "", "what is written into each loop device, to find it by")
	kubeconfig := flag.String("kubeconfig", "", "how the API server is reached")
	flag.Parse()
	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		return err
	}
	config.QPS, config.Burst = 100, 200
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	store, err := disks.NewStore(*state)
	if err != nil {
		return fmt.Errorf("%s: %w", *state, err)
	}
	ctx := context.Background()
	controller.NewProvisionController(ctx, client, *name,
		&provisioner{node: *node, disks: store, loops: disks.Loops{Tag: *tag}},
		controller.LeaderElection(false), controller.Threadiness(4),
		// Never give up on a claim, or on a volume that is to go.
		controller.FailedProvisionThreshold(0), controller.FailedDeleteThreshold(0),
	).Run(ctx)
	return errors.New("the controller ended")
}

func main() { log.Fatal(run()) }
