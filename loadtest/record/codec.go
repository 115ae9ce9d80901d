package record

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// Encode writes the JSON form, on one line. Lists without elements are empty,
// never null.
func Encode(w io.Writer, r *Recording) error {
	complete := r.withLists()
	if err := complete.Validate(); err != nil {
		return fmt.Errorf("encode the recording of %q: %w", r.Scenario, err)
	}
	if err := json.NewEncoder(w).Encode(complete); err != nil {
		return fmt.Errorf("encode the recording of %q: %w", r.Scenario, err)
	}
	return nil
}

// Decode reads what Encode has written, of this version of the format.
func Decode(r io.Reader) (*Recording, error) {
	var rec Recording
	if err := json.NewDecoder(r).Decode(&rec); err != nil {
		return nil, fmt.Errorf("decode a recording: %w: is it a recording of a load test, and complete?", err)
	}
	if err := rec.Validate(); err != nil {
		return nil, fmt.Errorf("decode a recording: %w", err)
	}
	return rec.withLists(), nil
}

// Write encodes to a file, which appears at once or not at all.
func Write(path string, r *Recording) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("write a recording: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close(), os.Remove(f.Name()))
		}
	}()
	if err := Encode(f, r); err != nil {
		return err
	}
	if err := f.Chmod(0o644); err != nil {
		return fmt.Errorf("write a recording: %w", err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("write a recording: %w", err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return fmt.Errorf("write a recording: %w", err)
	}
	return nil
}

// Read decodes a file.
func Read(path string) (*Recording, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read a recording: %w", err)
	}
	defer f.Close()
	r, err := Decode(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return r, nil
}

// Validate says what contradicts the format.
func (r *Recording) Validate() error {
	if r.Format != Format {
		return fmt.Errorf("it has format %d, this program knows %d: use the program that made it", r.Format, Format)
	}
	if r.DurationS < 0 {
		return fmt.Errorf("it lasts %g s", r.DurationS)
	}
	for _, c := range r.Clusters {
		if n := len(c.Seconds); n != 0 && n != len(r.Seconds) {
			return fmt.Errorf("cluster %q has %d seconds, the run %d", c.Name, n, len(r.Seconds))
		}
	}
	for _, f := range r.Faults {
		if f.UntilS < f.FromS {
			return fmt.Errorf("the fault %q ends at %g s, before it begins at %g s", f.Name, f.UntilS, f.FromS)
		}
	}
	for _, p := range r.Replicas {
		for i := 1; i < len(p.Samples); i++ {
			if p.Samples[i].AtS < p.Samples[i-1].AtS {
				return fmt.Errorf("the samples of replica %q are out of order at %g s", p.Name, p.Samples[i].AtS)
			}
		}
	}
	for _, s := range r.Shards {
		last := 0.0
		for _, span := range s.Spans {
			if span.FromS < last || span.UntilS < span.FromS {
				return fmt.Errorf("the spans of shard %s are out of order at %g s", s.Name(), span.FromS)
			}
			last = span.UntilS
		}
	}
	judged := r.Verdict
	if judged.Judge(); judged.Held != r.Verdict.Held {
		return fmt.Errorf("its verdict says held=%t, its counts and expectations say otherwise", r.Verdict.Held)
	}
	return nil
}

// Name is the shard's as the service writes it: the cluster, and its slice if it
// is cut.
func (s *Shard) Name() string { return shardName(s.Cluster, s.Slice, s.Slices) }

// ShardName is the name of the shard that moved.
func (m *Move) ShardName() string { return shardName(m.Cluster, m.Slice, m.Slices) }

func shardName(cluster string, slice, slices int) string {
	if slices <= 1 {
		return cluster
	}
	return fmt.Sprintf("%s#%d/%d", cluster, slice, slices)
}

// withLists is a copy in which empty lists are not nil.
func (r *Recording) withLists() *Recording {
	c := *r
	list(&c.Environment.Parts)
	list(&c.Parameters.Settings)
	list(&c.Seconds)
	list(&c.Clusters)
	list(&c.Faults)
	list(&c.Events)
	c.Replicas = append([]Replica{}, r.Replicas...)
	for i := range c.Replicas {
		list(&c.Replicas[i].Lives)
		list(&c.Replicas[i].Samples)
	}
	c.Shards = append([]Shard{}, r.Shards...)
	for i := range c.Shards {
		list(&c.Shards[i].Spans)
	}
	list(&c.Moves)
	list(&c.Verdict.Expectations)
	list(&c.Verdict.Information)
	list(&c.Verdict.Findings)
	return &c
}

func list[T any](l *[]T) {
	if *l == nil {
		*l = []T{}
	}
}
