package report

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"github.com/trestle-bridge/trestle/loadtest/record"
	"github.com/trestle-bridge/trestle/loadtest/report/chart"
)

const (
	// mostLanes is up to how many shards each has a lane, and mostSpans up to how
	// many spans; with more, replicas are drawn with the number of their shards.
	mostLanes = 40
	mostSpans = 4000
	// mostClusters is how many clusters are drawn.
	mostClusters = 12
	// nobody is the name of who owns what has no owner.
	nobody = "nobody"
)

// ownership shows who led and who owned which shard.
func (p *painter) ownership() (all []figure) {
	if len(p.r.Shards) == 0 {
		return nil
	}
	spans := 0
	for _, s := range p.r.Shards {
		spans += len(s.Spans)
	}
	if len(p.r.Shards) <= mostLanes && spans <= mostSpans {
		return []figure{p.lanes()}
	}
	return []figure{p.counts()}
}

// lanes has one lane a shard.
func (p *painter) lanes() figure {
	f := figure{
		ID: "ownership", Title: "Who owned which shard", Unit: unitCount,
		Caption: "Each lane is a shard, each color a replica. Red is nobody.",
	}
	if leading := p.leader(); len(leading) > 0 {
		f.Caption = "The first lane is who led; each other is a shard, each color a replica. Red is nobody."
		f.Lanes = append(f.Lanes, lane{"leader", leading})
	}
	f.Table = grid{Head: []string{"shard", "owner", "epoch", "from", "for"}}
	for _, s := range p.r.Shards {
		l := lane{Name: s.Name()}
		for _, o := range s.Spans {
			l.Spans = append(l.Spans, p.owned(&s, o))
			if len(f.Table.Rows) < mostRows*4 {
				owner := cmp.Or(o.Replica, nobody)
				f.Table.Rows = append(f.Table.Rows, []string{s.Name(), owner, fmt.Sprint(o.Epoch), chart.Clock(o.FromS), Seconds(o.UntilS - o.FromS)})
			} else {
				f.Table.Note = "The rest is in the recording."
			}
		}
		f.Lanes = append(f.Lanes, l)
	}
	return f
}

func (p *painter) owned(s *record.Shard, o record.Span) span {
	out := p.span(o.FromS, o.UntilS)
	who := cmp.Or(o.Replica, nobody)
	if o.Replica == "" {
		out.Class = nobody
	} else {
		out.Label, out.Color = o.Replica, p.colors[o.Replica]
	}
	out.Title = fmt.Sprintf("%s: %s, epoch %d, from %s for %s", s.Name(), who, o.Epoch, chart.Clock(o.FromS), Seconds(o.UntilS-o.FromS))
	return out
}

// leader are the spans of who led, by the samples.
func (p *painter) leader() (spans []span) {
	for _, replica := range p.r.Replicas {
		for i := 0; i < len(replica.Samples); i++ {
			if !replica.Samples[i].Leader {
				continue
			}
			from := i
			for i+1 < len(replica.Samples) && replica.Samples[i+1].Leader && replica.Samples[i+1].AtS-replica.Samples[i].AtS < gap {
				i++
			}
			start, end := replica.Samples[from].AtS, replica.Samples[i].AtS+0.5
			if from == 0 {
				start = 0
			}
			s := p.span(start, end)
			s.Color, s.Label = p.colors[replica.Name], replica.Name
			s.Title = fmt.Sprintf("%s led from %s for %s", replica.Name, chart.Clock(start), Seconds(end-start))
			spans = append(spans, s)
		}
	}
	return spans
}

// gap is how many seconds without a sample mean that there was nothing to
// sample.
const gap = 3

// counts has a row for each replica with the number of its shards, and one for
// nobody.
func (p *painter) counts() figure {
	f := figure{
		ID: "ownership", Title: "Who owned how many shards", Unit: unitCount,
		Caption: fmt.Sprintf("Of %s, how many each replica owned; at the top how many nobody did, of each column the most.", counted(int64(len(p.r.Shards)), "shard")),
	}
	steps := map[string][]chart.Step{}
	for _, s := range p.r.Shards {
		for _, o := range s.Spans {
			if o.UntilS > o.FromS {
				steps[o.Replica] = append(steps[o.Replica], chart.Step{At: o.FromS, Change: 1}, chart.Step{At: o.UntilS, Change: -1})
			}
		}
	}
	owned := func(name string, highest bool) values {
		list := steps[name]
		// What ends at a moment goes before what begins then.
		slices.SortStableFunc(list, func(a, b chart.Step) int {
			return cmp.Or(cmp.Compare(a.At, b.At), cmp.Compare(a.Change, b.Change))
		})
		// All that is still owned at the end is owned in the last column.
		for len(list) > 0 && list[len(list)-1].At >= p.r.DurationS {
			list = list[:len(list)-1]
		}
		last, most := p.columns.Steps(list)
		if highest {
			return most
		}
		return last
	}
	f.Rows = append(f.Rows, row{Name: nobody, Class: nobody, Values: owned("", true)})
	for _, replica := range p.r.Replicas {
		f.Rows = append(f.Rows, row{Name: replica.Name, Color: p.colors[replica.Name], Values: owned(replica.Name, false), Absent: p.absent(&replica)})
	}
	p.finish(&f, func(most float64) chart.Scale { return chart.Linear(most, 1, Number) })
	return f
}

// absent are the times when a replica did not live.
func (p *painter) absent(replica *record.Replica) (spans []span) {
	if len(replica.Lives) == 0 {
		return nil
	}
	until, how := 0.0, "not yet started"
	add := func(from, to float64) {
		if to > from {
			s := p.span(from, to)
			s.Title = how
			spans = append(spans, s)
		}
	}
	for _, l := range replica.Lives {
		add(until, l.FromS)
		until, how = l.UntilS, cmp.Or(l.Ended, "ended")
	}
	add(until, p.r.DurationS)
	return spans
}

// replicas shows what each of them used and had to do.
func (p *painter) replicas() (all []figure) {
	bytes := func(most float64) chart.Scale { return chart.Stepped(most, 1, 1024, Bytes) }
	for _, k := range []struct {
		f     figure
		of    func(s *record.Sample) float64
		scale func(most float64) chart.Scale
	}{
		{figure{ID: "queue", Title: "Queue of each replica", Unit: unitCount, Caption: "Instances whose changes waited in the pipeline."},
			func(s *record.Sample) float64 { return float64(s.Waiting) }, nil},
		{figure{ID: "outbox", Title: "Outbox of each replica", Unit: unitCount, Caption: "Commits that waited to be published."},
			func(s *record.Sample) float64 { return float64(s.Outbox) }, nil},
		{figure{ID: "updates", Title: "Updates heard by each replica", Unit: unitRate, Caption: "Status updates a second."},
			func(s *record.Sample) float64 { return s.UpdatesPerSecond }, nil},
		{figure{ID: "cpu", Title: "CPU of each replica", Unit: unitCores, Caption: "Cores in use."},
			func(s *record.Sample) float64 { return s.CPUCores }, nil},
		{figure{ID: "memory", Title: "Memory of each replica", Unit: unitBytes, Caption: "Resident memory of the process."},
			func(s *record.Sample) float64 { return float64(s.RSSBytes) }, bytes},
	} {
		f := k.f
		for _, replica := range p.r.Replicas {
			samples := replica.Samples
			at := func(i int) (float64, float64) { return samples[i].AtS, k.of(&samples[i]) }
			v := p.bridge(p.columns.GatherAt(len(samples), at, chart.Max), &replica)
			f.Rows = append(f.Rows, row{Name: replica.Name, Color: p.colors[replica.Name], Values: v, Absent: p.absent(&replica)})
		}
		if !slices.ContainsFunc(f.Rows, func(r row) bool { return maxOf(r.Values) > 0 }) {
			continue
		}
		scale := k.scale
		if scale == nil {
			scale = func(most float64) chart.Scale { return chart.Linear(most, 1, f.Unit.format) }
		}
		p.finish(&f, scale)
		all = append(all, f)
	}
	return all
}

// bridge fills columns that fall between two samples of one life with the earlier
// one, as long as they are few: a sample each second need not fall into each
// second.
func (p *painter) bridge(v []float64, replica *record.Replica) []float64 {
	last := -1
	for i := range v {
		if math.IsNaN(v[i]) {
			continue
		}
		if from, to := p.columns.Middle(max(last, 0)), p.columns.Middle(i); last >= 0 && to-from < gap &&
			!slices.ContainsFunc(replica.Lives, func(l record.Life) bool { return l.UntilS > from && l.UntilS < to }) {
			for j := last + 1; j < i; j++ {
				v[j] = v[last]
			}
		}
		last = i
	}
	return v
}

// finish draws the rows of a figure, all on one scale, and makes the table.
func (p *painter) finish(f *figure, scaled func(most float64) chart.Scale) {
	most := math.NaN()
	for _, r := range f.Rows {
		if m := maxOf(r.Values); math.IsNaN(most) || m > most {
			most = m
		}
	}
	scale := scaled(most)
	f.Caption += fmt.Sprintf(" Each row is from 0 to %s.", scale.Ticks[len(scale.Ticks)-1].Label)
	if f.ID == "clusters" {
		f.Caption += " Of clusters, the slowest are shown."
	}
	f.Table = grid{Head: []string{"", "mean", "most"}}
	for i := range f.Rows {
		r := &f.Rows[i]
		r.Most = f.Unit.format(maxOf(r.Values))
		r.Paths = []path{{"fill", p.columns.Area(r.Values, scale)}, {"line", p.columns.Line(r.Values, scale)}}
		f.Table.Rows = append(f.Table.Rows, []string{r.Name, f.Unit.format(meanOf(r.Values)), r.Most})
	}
}

// clusters shows the latency of the slowest clusters, if their seconds are kept.
func (p *painter) clusters() (figure, bool) {
	f := figure{ID: "clusters", Title: "Latency p99 of clusters", Unit: unitMS, Caption: "Of what was published in each second."}
	kept := slices.DeleteFunc(slices.Clone(p.r.Clusters), func(c record.Cluster) bool { return len(c.Seconds) == 0 })
	if len(kept) < 2 {
		return f, false
	}
	slow, _ := slowest(kept, mostClusters)
	for _, c := range slow {
		v := make([]float64, len(c.Seconds))
		for i, s := range c.Seconds {
			v[i] = latencyOr(s.Latency, s.Latency.P99MS)
		}
		f.Rows = append(f.Rows, row{Name: c.Name, Class: "q99", Values: p.columns.Gather(v, chart.Max)})
	}
	p.finish(&f, func(most float64) chart.Scale { return chart.Linear(most, 1, Milliseconds) })
	return f, true
}
