package shard

import (
	"errors"
	"fmt"
	"math/bits"
	"strconv"
	"strings"

	"github.com/cespare/xxhash/v2"
)

// MaxSlices bounds how finely a cluster can be cut.
const MaxSlices = 1024

// ErrID is wrapped by every error of ParseID.
var ErrID = errors.New("not a shard id")

// ID names one shard: a cluster, or one slice of it.
//
// IDs made by Whole, Slice and ParseID are normalised (a whole cluster has
// Slice 0 and Slices 0) and can be compared and used as map keys.
type ID struct {
	// Cluster is the cluster's name, any non-empty string.
	Cluster string
	// Slice counts from 0.
	Slice int
	// Slices is how many there are; 0 or 1 is the whole cluster.
	Slices int
}

// Whole is the shard that is a whole cluster.
func Whole(cluster string) ID { return ID{Cluster: cluster} }

// Slice is the i-th (from 0) of n slices of a cluster; with n up to 1 it is
// the whole cluster. Valid says whether i and n make sense together.
func Slice(cluster string, i, n int) ID {
	if n <= 1 {
		return Whole(cluster)
	}
	return ID{Cluster: cluster, Slice: i, Slices: n}
}

// Slices lists the shards of a cluster that is cut into n, in order. n is
// taken as 1 when below and as MaxSlices when above.
func Slices(cluster string, n int) []ID {
	n = min(max(n, 1), MaxSlices)
	ids := make([]ID, n)
	for i := range ids {
		ids[i] = Slice(cluster, i, n)
	}
	return ids
}

// Sliced says that the shard is a part of its cluster only.
func (id ID) Sliced() bool { return id.Slices > 1 }

// Valid says whether the ID names a shard: a cluster, and a slice among its
// slices.
func (id ID) Valid() bool {
	if id.Cluster == "" {
		return false
	}
	if !id.Sliced() {
		return id.Slice == 0 && id.Slices >= 0
	}
	return id.Slice >= 0 && id.Slice < id.Slices && id.Slices <= MaxSlices
}

// String is the cluster's name with each '#' doubled, and for a slice then
// "#slice/slices": "eu01", "eu01#2/4" (slice 2, counted from 0, of 4),
// "odd##name#0/2" (a slice of the cluster "odd#name"). No two shards share a
// string.
func (id ID) String() string {
	name := id.Cluster
	if strings.Contains(name, "#") {
		name = strings.ReplaceAll(name, "#", "##")
	}
	if !id.Sliced() {
		return name
	}
	return name + "#" + strconv.Itoa(id.Slice) + "/" + strconv.Itoa(id.Slices)
}

// ParseID is the inverse of String; it accepts nothing that String would have
// written differently. Its errors wrap ErrID.
func ParseID(s string) (ID, error) {
	var name strings.Builder
	rest := s
	suffix, sliced := "", false
	for {
		i := strings.IndexByte(rest, '#')
		if i < 0 {
			name.WriteString(rest)
			break
		}
		name.WriteString(rest[:i])
		rest = rest[i+1:]
		if !strings.HasPrefix(rest, "#") {
			suffix, sliced = rest, true
			break
		}
		name.WriteByte('#')
		rest = rest[1:]
	}
	id := Whole(name.String())
	if sliced {
		i, n, ok := strings.Cut(suffix, "/")
		if !ok {
			return ID{}, fmt.Errorf("parse %q: slice without a count: %w", s, ErrID)
		}
		var err error
		if id.Slice, err = number(i); err != nil {
			return ID{}, fmt.Errorf("parse %q: slice %q: %w", s, i, err)
		}
		if id.Slices, err = number(n); err != nil {
			return ID{}, fmt.Errorf("parse %q: count of slices %q: %w", s, n, err)
		}
		if !id.Sliced() {
			return ID{}, fmt.Errorf("parse %q: one slice is a whole cluster: %w", s, ErrID)
		}
	}
	if !id.Valid() {
		return ID{}, fmt.Errorf("parse %q: %w", s, ErrID)
	}
	return id, nil
}

// number reads a decimal as strconv.Itoa writes it: no sign, no leading zero.
func number(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 || strconv.Itoa(n) != s {
		return 0, ErrID
	}
	return n, nil
}

// MarshalText writes the ID as String does, so that it can be a JSON string or
// key. An invalid ID is an error.
func (id ID) MarshalText() ([]byte, error) {
	if !id.Valid() {
		return nil, fmt.Errorf("marshal %#v: %w", id, ErrID)
	}
	return []byte(id.String()), nil
}

// UnmarshalText reads what MarshalText wrote.
func (id *ID) UnmarshalText(text []byte) error {
	parsed, err := ParseID(string(text))
	if err != nil {
		return err
	}
	*id = parsed
	return nil
}

// Compare orders IDs by cluster, then by count of slices, then by slice.
func (id ID) Compare(other ID) int {
	if c := strings.Compare(id.Cluster, other.Cluster); c != 0 {
		return c
	}
	if c := max(id.Slices, 1) - max(other.Slices, 1); c != 0 {
		return c
	}
	return id.Slice - other.Slice
}

// Contains says whether an instance of this shard's cluster belongs to this
// shard. Of the slices of a cluster exactly one contains a given instance.
func (id ID) Contains(instance [16]byte) bool {
	if !id.Sliced() {
		return true
	}
	slice, _ := bits.Mul64(xxhash.Sum64(instance[:]), uint64(id.Slices))
	return slice == uint64(id.Slice)
}

// Epoch counts the owners of a shard. It only ever grows; 0 is a shard that
// was never owned.
type Epoch int64

// Fence is what a writer must hold in the database for its rows to be written.
type Fence struct {
	Shard ID
	Epoch Epoch
	// Owner is the incarnation of a replica, new at every start of a process.
	Owner string
	// Generation counts the changes of the number of slices of the cluster.
	Generation int64
}
