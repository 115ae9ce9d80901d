package kv_test

import (
	"crypto/rand"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/trestle-bridge/trestle/coordinator/kv"
	"github.com/trestle-bridge/trestle/coordinator/kv/kvtest"
	"github.com/trestle-bridge/trestle/internal/bubbletest"
	"github.com/trestle-bridge/trestle/internal/devstack/devstacktest"
)

func TestMain(m *testing.M) { devstacktest.Main(m) }

func TestEtcd(t *testing.T) {
	server := devstacktest.Etcd(t)
	client, err := clientv3.New(clientv3.Config{Endpoints: server.Endpoints(), DialTimeout: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := client.Close(); err != nil {
			t.Error(err)
		}
	}()
	kvtest.Conform(t, func(t *testing.T) (kvtest.Server, string) {
		return kvtest.Server{
			Store: kv.Etcd(client),
			Compact: func(t *testing.T) {
				resp, err := client.Get(t.Context(), "x")
				if err != nil {
					t.Fatal(err)
				}
				if _, err := client.Compact(t.Context(), resp.Header.Revision); err != nil {
					t.Fatal(err)
				}
			},
		}, "/kv/" + rand.Text() + "/"
	})
}

func TestFake(t *testing.T) {
	kvtest.Conform(t, func(t *testing.T) (kvtest.Server, string) {
		fake := kvtest.New()
		return kvtest.Server{Store: fake.Client(nil), Compact: func(*testing.T) { fake.Compact() }}, "/kv/"
	})
}

// In a bubble the fake's leases take no time of ours.
func TestFakeInBubble(t *testing.T) {
	bubbletest.Test(t, func(t *testing.T) {
		store := kvtest.New().Client(nil)
		lease, _, err := store.Grant(t.Context(), time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(59 * time.Minute)
		if _, err := store.KeepAlive(t.Context(), lease); err != nil {
			t.Fatal(err)
		}
		time.Sleep(59 * time.Minute)
		if _, err := store.KeepAlive(t.Context(), lease); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour + 1)
		if _, err := store.KeepAlive(t.Context(), lease); err == nil {
			t.Fatal("the lease has not expired")
		}
	})
}
