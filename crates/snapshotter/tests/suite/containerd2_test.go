//go:build containerd2

package suite

import (
	"context"
	"testing"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	_ "github.com/containerd/containerd/v2/pkg/testutil" // its flag -test.root
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

func TestSuite(t *testing.T) {
	testsuite.SnapshotterSuite(t, name(), func(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		socket, stop, err := serve(root)
		if err != nil {
			return nil, nil, err
		}
		connection, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("localhost"))
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
