package ledger

import (
	"math/bits"
	"time"
)

// Histogram counts durations in buckets at most 1.6 % wide. The zero value is
// empty. It is not safe for concurrent use.
type Histogram struct {
	counts [64 * 32]int64
	count  int64
	max    time.Duration
	sum    time.Duration
}

// fineBits is how many bits below the leading one tell buckets apart.
const fineBits = 6

// Add counts a duration; a negative one counts as 0.
func (h *Histogram) Add(d time.Duration) {
	d = max(d, 0)
	h.counts[bucket(uint64(d))]++
	h.count++
	h.sum += d
	h.max = max(h.max, d)
}

// bucket: below 2^fineBits each nanosecond has its own; above, each power of
// two has 2^fineBits of them. The last one takes all from 2^37 ns (137 s) on.
func bucket(v uint64) int {
	if v < 1<<fineBits {
		return int(v)
	}
	shift := bits.Len64(v) - fineBits - 1
	return min(shift<<fineBits+int(v>>shift), 64*32-1)
}

// upper is the largest value in a bucket.
func upper(b int) time.Duration {
	if b < 1<<(fineBits+1) {
		return time.Duration(b)
	}
	shift := b>>fineBits - 1
	return time.Duration((uint64(b&(1<<fineBits-1)|1<<fineBits)+1)<<shift - 1)
}

// Merge adds the durations of another one.
func (h *Histogram) Merge(other *Histogram) {
	for b, n := range other.counts {
		h.counts[b] += n
	}
	h.count += other.count
	h.sum += other.sum
	h.max = max(h.max, other.max)
}

// Since is what has been added since an earlier copy was taken. Its Max is that
// of all.
func (h *Histogram) Since(earlier *Histogram) Histogram {
	since := *h
	for b, n := range earlier.counts {
		since.counts[b] -= n
	}
	since.count -= earlier.count
	since.sum -= earlier.sum
	return since
}

// Count is the number of durations.
func (h *Histogram) Count() int64 { return h.count }

// Max is the longest.
func (h *Histogram) Max() time.Duration { return h.max }

// Mean is the average, 0 if there is none.
func (h *Histogram) Mean() time.Duration {
	if h.count == 0 {
		return 0
	}
	return h.sum / time.Duration(h.count)
}

// Quantile is the duration that a share q (0 to 1) of all does not exceed, to
// the precision of the buckets; 0 if there is none.
func (h *Histogram) Quantile(q float64) time.Duration {
	rank := int64(q*float64(h.count) + 0.999999)
	seen := int64(0)
	for b, n := range h.counts {
		if seen += n; n > 0 && seen >= rank && b < len(h.counts)-1 {
			return min(upper(b), h.max)
		}
	}
	return h.max
}

// Compact is what a histogram holds in little room, to keep many of them. The
// zero value is empty.
type Compact struct {
	buckets []int32
	counts  []int64
	count   int64
	max     time.Duration
	sum     time.Duration
}

// Compact copies what has been added so far.
func (h *Histogram) Compact() Compact {
	c := Compact{count: h.count, max: h.max, sum: h.sum}
	for b, n := range h.counts {
		if n != 0 {
			c.buckets, c.counts = append(c.buckets, int32(b)), append(c.counts, n)
		}
	}
	return c
}

// MergeCompact adds the durations of a compact one.
func (h *Histogram) MergeCompact(c Compact) {
	for i, b := range c.buckets {
		h.counts[b] += c.counts[i]
	}
	h.count += c.count
	h.sum += c.sum
	h.max = max(h.max, c.max)
}
