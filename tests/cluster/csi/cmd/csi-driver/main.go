// Command csi-driver serves sparse files as CSI volumes; it registers itself with the kubelet.
package main

import (
	"flag"
	"log"
	"path/filepath"

	"cdi.test/cluster/csi/disks"
	"cdi.test/cluster/csi/driver"
)

func main() {
	name := flag.String("name", "", "the driver's name")
	node := flag.String("node", "", "the node's name")
	state := flag.String("state", "", "directory of volumes and snapshots")
	tag := flag.String("tag", "", "what is written into each loop device, to find it by")
	kubelet := flag.String("kubelet", "/var/lib/kubelet", "the kubelet's directory")
	flag.Parse()
	volumes, err := disks.NewStore(filepath.Join(*state, "volumes"))
	if err != nil {
		log.Fatal(err)
	}
	snapshots, err := disks.NewStore(filepath.Join(*state, "snapshots"))
	if err != nil {
		log.Fatal(err)
	}
	served := &driver.Driver{Name: *name, Node: *node, Volumes: volumes, Snapshots: snapshots, Loops: disks.Loops{Tag: *tag}}
	log.Fatal(served.Serve(served.Socket(*kubelet), *kubelet))
}
