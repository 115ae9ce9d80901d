package sweep

import (
	"testing"

	"github.com/trestle-bridge/trestle/internal/devstack/devstacktest"
)

func TestMain(m *testing.M) { devstacktest.Main(m) }
