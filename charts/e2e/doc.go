// Package e2e holds a test alone: the chart on a real Kubernetes, under load from
// simulated clusters that this machine serves. make e2e-kubernetes runs it, in
// about ten minutes.
//
// It takes a Kubernetes of at least two nodes, and a PostgreSQL, a Redis and an
// etcd that both this machine and its pods reach under the same address: run them
// beside the cluster, not in it, lest a drained node take them along. kubectl and
// helm are called as they are found, and go where KUBECONFIG points. Everything
// happens in a namespace of its own, which is removed; nodes are drained, but of
// the pods of Trestle alone, and uncordoned afterwards. Without a Kubernetes, or
// with one of the first five variables unset, the test is skipped.
//
//	TRESTLE_E2E_IMAGE     image that the nodes have or can pull, repository:tag
//	TRESTLE_E2E_POSTGRES  URL of an empty database
//	TRESTLE_E2E_REDIS     host:port
//	TRESTLE_E2E_ETCD      URL
//	TRESTLE_E2E_LISTEN    address of this machine that pods reach
//	TRESTLE_E2E_KILL      command that kills a container with -9; it is given the
//	                      node and the container's id. Unset: that step is left out
//	TRESTLE_E2E_RATE      updates a second, default 1000
//
// As in
//
//	make image IMAGE=registry.example.com/trestle:try && docker push registry.example.com/trestle:try
//	export TRESTLE_E2E_IMAGE=registry.example.com/trestle:try TRESTLE_E2E_LISTEN=10.0.0.1
//	export TRESTLE_E2E_POSTGRES=postgres://trestle:secret@10.0.0.1:5432/e2e
//	export TRESTLE_E2E_REDIS=10.0.0.1:6379 TRESTLE_E2E_ETCD=http://10.0.0.1:2379
//	make e2e-kubernetes
//
// It fails if anything was lost, went back or was told twice (after the kill, what
// was told last may come again), if a shard moved more than once in the upgrade, if
// planned moves made updates late by more than 100 ms at the quantile 0.999, or if
// uninstalling leaves something. Where updates are later than that while nothing
// happens, lateness is told and not judged. Its log ends with the table that
// docs/operations.md shows.
package e2e
