// Command cosign is Sigstore's cosign, with one more command: "registry" serves a container registry that has the
// referrers API, which Debian's docker-registry lacks.
package main

import (
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/sigstore/cosign/v3/cmd/cosign/cli"
)

func main() {
	run := cli.New().Execute
	if len(os.Args) == 2 && os.Args[1] == "registry" {
		run = serve
	}
	if run() != nil { // it has printed the error
		os.Exit(1)
	}
}

// serve prints its address and runs until it is killed; its content is in memory.
func serve() error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Fprintln(os.Stderr, "registry:", err)
		return err
	}
	fmt.Println(listener.Addr())
	return http.Serve(listener, registry.New(registry.WithReferrersSupport(true), registry.Logger(log.New(io.Discard, "", 0))))
}
