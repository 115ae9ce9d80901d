package publish

import (
	"encoding/json"
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/trestle-bridge/trestle/internal/devstack/devstacktest"
	"github.com/trestle-bridge/trestle/internal/event"
)

// BenchmarkPublish publishes batches as a lane does. An op is a message; cpu-ns
// is this process' own, without Redis.
func BenchmarkPublish(b *testing.B) {
	for _, size := range []int{1, 10, 100, 500, 5000} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			p := newPublisher(b, Config{Redis: Redis{Address: devstacktest.Redis(b).Addr()}})
			measure(b, size, func(set event.Set) error { return p.Publish(b.Context(), []event.Set{set}, nil) })
		})
	}
}

// BenchmarkPlain is what it is measured against: the driver and encoding/json.
func BenchmarkPlain(b *testing.B) {
	for _, size := range []int{1, 500} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			client := redis.NewClient(&redis.Options{Addr: devstacktest.Redis(b).Addr()})
			defer func() { _ = client.Close() }()
			measure(b, size, func(set event.Set) error {
				pipe := client.Pipeline()
				for _, m := range set.Instances {
					payload, err := json.Marshal(m)
					if err != nil {
						return err
					}
					pipe.Publish(b.Context(), event.ChannelInstances, payload)
				}
				_, err := pipe.Exec(b.Context())
				return err
			})
		})
	}
}

func measure(b *testing.B, size int, publish func(event.Set) error) {
	set := instances("instance", size)
	if err := publish(set); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	before := processCPU(b)
	b.ResetTimer()
	for done := 0; done < b.N; done += size {
		if err := publish(set); err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	b.ReportMetric(float64(processCPU(b)-before)/float64(b.N), "cpu-ns/op")
}

func processCPU(b *testing.B) time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

func BenchmarkEncode(b *testing.B) {
	set := instances("instance", 1)
	buffer := make([]byte, 0, 1024)
	b.ReportAllocs()
	for b.Loop() {
		buffer = appendInstance(buffer[:0], &set.Instances[0])
	}
}
