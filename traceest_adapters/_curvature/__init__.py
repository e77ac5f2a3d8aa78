"""The curvature of a loss: Hessian, Gauss–Newton matrix and empirical Fisher, described once for all frameworks."""
