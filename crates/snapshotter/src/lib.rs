//! containerd's snapshotter and differ: gRPC in, verbs of `service` out. It translates and never decides.
