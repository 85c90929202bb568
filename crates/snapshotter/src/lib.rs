//! containerd's snapshotter and differ: translates gRPC calls to verbs of `service`, and decides
//! nothing itself.
//!
//! [`server`] starts and ends the server; [`snapshots`] has the calls of the snapshotter;
//! [`convert`] turns messages into values and back, [`status`] is the one match from errors to gRPC
//! codes. Blocking work (files, database) runs on its own threads, never on those that handle gRPC.
#![forbid(unsafe_code)]

pub mod content;
pub mod convert;
pub mod differ;
pub mod health;
pub mod metrics;
mod metrics_listener;
pub mod server;
pub mod shared;
pub mod snapshots;
pub mod status;

/// The messages of containerd's API, generated from `proto/`.
#[allow(missing_docs, clippy::all, unused_qualifications)]
pub mod api {
    /// Types shared by containerd's services.
    pub mod types {
        tonic::include_proto!("containerd.types");
    }
    /// containerd.services
    pub mod services {
        /// containerd.services.content
        pub mod content {
            /// containerd.services.content.v1
            pub mod v1 {
                tonic::include_proto!("containerd.services.content.v1");
            }
        }
        /// containerd.services.diff
        pub mod diff {
            /// containerd.services.diff.v1
            pub mod v1 {
                tonic::include_proto!("containerd.services.diff.v1");
            }
        }
        /// containerd.services.introspection
        pub mod introspection {
            /// containerd.services.introspection.v1
            pub mod v1 {
                tonic::include_proto!("containerd.services.introspection.v1");
            }
        }
        /// containerd.services.leases
        pub mod leases {
            /// containerd.services.leases.v1
            pub mod v1 {
                tonic::include_proto!("containerd.services.leases.v1");
            }
        }
        /// containerd.services.namespaces
        pub mod namespaces {
            /// containerd.services.namespaces.v1
            pub mod v1 {
                tonic::include_proto!("containerd.services.namespaces.v1");
            }
        }
        /// containerd.services.snapshots
        pub mod snapshots {
            /// containerd.services.snapshots.v1
            pub mod v1 {
                tonic::include_proto!("containerd.services.snapshots.v1");
            }
        }
    }
}
