// SPDX-License-Identifier: Apache-2.0

// Command netfenced is the Netfence daemon and its command line.
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/netfence/netfence/internal/cli"
	"github.com/netfence/netfence/internal/confine"
	"github.com/netfence/netfence/internal/daemon"
)

// version is set by the release build (-ldflags "-X main.version=…").
var version string

func main() {
	if confine.Init() {
		confine.Main()
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	return cli.Run(ctx, args, stdout, stderr, cli.Daemon{
		Version: buildVersion(),
		Start:   daemon.Run,
		Clear:   daemon.Clear,
	})
}

// buildVersion falls back on what the go command recorded, which is "(devel)" outside of a version control checkout.
func buildVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}
