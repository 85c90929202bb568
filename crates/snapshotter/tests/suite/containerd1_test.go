//go:build !containerd2

package suite

import (
	"context"
	"testing"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	_ "github.com/containerd/containerd/pkg/testutil" // its flag -test.root
	"github.com/containerd/containerd/snapshots"
	"github.com/containerd/containerd/snapshots/proxy"
	"github.com/containerd/containerd/snapshots/testsuite"
	"google.golang.org/grpc"
)

func TestSuite(t *testing.T) {
	testsuite.SnapshotterSuite(t, name(), func(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		socket, stop, err := serve(root)
		if err != nil {
			return nil, nil, err
		}
		// As containerd dials: a bare path would become the authority, which is invalid.
		connection, err := grpc.Dial("unix://"+socket, grpc.WithInsecure(), grpc.WithAuthority("localhost"))
		if err != nil {
			return nil, nil, err
		}
		end := func() error {
			connection.Close()
			return stop()
		}
		return proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(connection), "vellum"), end, nil
	})
}
