// Package e2e holds a test alone: the chart on a real Kubernetes, under load from
// simulated clusters that this machine serves. make e2e-kubernetes runs it.
//
// kubectl and helm are called as they are found, and go where KUBECONFIG points.
// Everything happens in a namespace of its own, which is removed. Without
// TRESTLE_E2E_IMAGE the test is skipped. The environment says:
//
//	TRESTLE_E2E_IMAGE     image that the nodes have or can pull, repository:tag
//	TRESTLE_E2E_POSTGRES  URL of an empty database, the same here and in pods
//	TRESTLE_E2E_REDIS     host:port, the same here and in pods
//	TRESTLE_E2E_ETCD      URL, the same here and in pods
//	TRESTLE_E2E_LISTEN    address of this machine that pods reach
//	TRESTLE_E2E_KILL      command that kills a container with -9; it is given the
//	                      node and the container's id. Unset: that step is left out
//	TRESTLE_E2E_RATE      updates a second, default 1000
package e2e
