package coordinator

import (
	"github.com/trestle-bridge/trestle/coordinator/table"
	"github.com/trestle-bridge/trestle/shard"
)

// Carrier is who carries one shard of a cluster.
type Carrier struct {
	Shard shard.ID
	// Incarnation of the owner, "" while there is none; Peer is its address.
	Incarnation, Peer string
}

// Carriers says who carries the shards of a cluster, and whether that is
// settled: none of them is changing hands or has nobody, and each owner says
// that it writes. A cluster that has no shards is settled.
func (c *Coordinator) Carriers(cluster string) (carriers []Carrier, settled bool) {
	c.link.Look(func(v *table.View) {
		cut := v.Clusters[cluster].Value
		settled = v.Revision != 0 && cut.Reslice == nil
		for _, id := range shard.Slices(cluster, cut.Slices) {
			stored, exists := v.Shards[id]
			if !exists {
				continue
			}
			r := stored.Value.Record
			carriers = append(carriers, Carrier{Shard: id, Incarnation: r.Owner, Peer: v.Members[r.Owner].Value.Peer})
			a := v.Answers[id][r.Owner].Value
			if r.Phase != shard.PhaseOwned || a.Kind != table.Holds || a.Epoch != r.Epoch {
				settled = false
			}
		}
	})
	return carriers, settled
}

// Listeners are the incarnations and peer addresses of all who may hear the shards
// of a cluster: those who carry them, and those who prepare to.
func (c *Coordinator) Listeners(cluster string) map[string]string {
	listeners := make(map[string]string)
	c.link.Look(func(v *table.View) {
		for id, stored := range v.Shards {
			for _, incarnation := range []string{stored.Value.Owner, stored.Value.Next} {
				if id.Cluster == cluster && incarnation != "" {
					listeners[incarnation] = v.Members[incarnation].Value.Peer
				}
			}
		}
	})
	return listeners
}

// Assigned says whether a shard has an owner, or is about to have one.
func (c *Coordinator) Assigned(id shard.ID) (assigned bool) {
	c.link.Look(func(v *table.View) {
		stored, exists := v.Shards[id]
		assigned = exists && stored.Value.Phase != shard.PhaseRetired
	})
	return assigned
}

// OwnerDeaf says whether a shard's owner has said that it cannot hear the
// shard's cluster.
func (c *Coordinator) OwnerDeaf(id shard.ID) (deaf bool) {
	c.link.Look(func(v *table.View) {
		deaf = v.Loads[v.Shards[id].Value.Owner].Value.Shards[id.String()].Deaf
	})
	return deaf
}

// HandedOver says whether a shard that this replica is to own was released by the
// owner before, rather than lost.
func (c *Coordinator) HandedOver(id shard.ID) (handed bool) {
	c.link.Look(func(v *table.View) {
		r := c.record(v, id)
		handed = r.Owner == c.me() && r.Phase == shard.PhaseRaise && r.Handed
	})
	return handed
}

// LeaderPeer is the peer address of the replica that leads, "" if none is known
// to.
func (c *Coordinator) LeaderPeer() (incarnation, peer string) {
	c.link.Look(func(v *table.View) {
		incarnation = v.Leader.Value.Incarnation
		peer = v.Members[incarnation].Value.Peer
	})
	return incarnation, peer
}

// Others says whether another replica lives that takes shards.
func (c *Coordinator) Others() (others bool) {
	c.link.Look(func(v *table.View) { others = c.others(v) })
	return others
}

// Members gives the peer address of each replica that lives, by incarnation.
func (c *Coordinator) Members() map[string]string {
	members := make(map[string]string)
	c.link.Look(func(v *table.View) {
		for who, m := range v.Members {
			members[who] = m.Value.Peer
		}
	})
	return members
}

// Peers are the addresses of all members, each with the fingerprints of the keys
// of those who say that they are there; an empty one is of a version that had no
// key yet.
func (c *Coordinator) Peers() map[string][]string {
	peers := make(map[string][]string)
	c.link.Look(func(v *table.View) {
		for _, m := range v.Members {
			// What could not be read is empty, and nobody.
			if at := m.Value.Peer; at != "" && m.Value.Name != "" {
				peers[at] = append(peers[at], m.Value.PeerKey)
			}
		}
	})
	return peers
}

// ClustersChanged says that Config.Clusters gives others than before.
func (c *Coordinator) ClustersChanged() {
	poke(c.lead)
	poke(c.assign)
}
