//! Docker's graph driver plugin protocol: HTTP in, verbs of `service` out. It translates and never decides.
