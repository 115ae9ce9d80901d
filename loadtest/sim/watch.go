package sim

import "context"

// Watch tells, until ctx ends, when subscribers may have missed updates: cut is
// called when one has been dropped, when nobody hears the cluster any more, and
// once more when somebody does again; overtaken after snapshots, which may be
// ahead of updates that are under way. Both are called by Watch's goroutine.
func (c *Cluster) Watch(ctx context.Context, cut, overtaken func()) {
	var before Stats
	for {
		var now Stats
		if err := c.Await(ctx, func(s Stats) bool {
			now = s
			return s.Snapshots != before.Snapshots || s.Subscribed != before.Subscribed ||
				s.Subscribers != before.Subscribers || s.Dropped != before.Dropped || s.Unheard != before.Unheard
		}); err != nil {
			return
		}
		back := before.Unheard > 0 && before.Subscribers == 0 && now.Subscribers > 0
		if now.Unheard != before.Unheard || back || now.Dropped != before.Dropped {
			cut()
		}
		if now.Snapshots != before.Snapshots {
			overtaken()
		}
		before = now
	}
}
