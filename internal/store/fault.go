package store

import (
	"context"
	"errors"
	"io"
	"net"
	"regexp"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// Fault is why the database refuses a row.
type Fault struct {
	SQLState string
	// Reason names what was violated. It holds nothing of what the row says,
	// which the database's own message may, the owner's token for one.
	Reason string
}

// RowFault says whether an error of Apply is the fault of a row: its data
// (class 22), a constraint (23) or a limit of the database (54). The same row
// will be refused again, wherever it is tried; without it the batch may do.
// Nothing else is: an outage, a timeout or a deadlock passes.
func RowFault(err error) (Fault, bool) {
	var refused *pgconn.PgError
	if !errors.As(err, &refused) || len(refused.Code) != 5 {
		return Fault{}, false
	}
	switch refused.Code[:2] {
	case "22", "23", "54":
	default:
		return Fault{}, false
	}
	if strings.HasPrefix(refused.TableName, "trestle_") {
		// Our own tables: a fault of ours, and not of the row.
		return Fault{}, false
	}
	return Fault{SQLState: refused.Code, Reason: faultReason(refused)}, true
}

// Unreachable says whether an error is that of a database that is away: it
// cannot be reached, is starting or stopping, or the connection broke. A try
// later may succeed.
func Unreachable(err error) bool {
	var answer *pgconn.PgError
	if errors.As(err, &answer) {
		switch {
		case strings.HasPrefix(answer.Code, "08"): // connection
			return true
		case answer.Code == "57P01", answer.Code == "57P02", answer.Code == "57P03": // shutting down, crashed, starting
			return true
		case answer.Code == "53300": // too many connections
			return true
		}
		return false
	}
	var network net.Error
	var connecting *pgconn.ConnectError
	return errors.As(err, &network) || errors.As(err, &connecting) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, context.DeadlineExceeded)
}

func faultReason(refused *pgconn.PgError) string {
	var out strings.Builder
	for _, name := range []struct{ what, is string }{
		{"table", refused.TableName}, {"column", refused.ColumnName},
		{"type", refused.DataTypeName}, {"constraint", refused.ConstraintName},
	} {
		if name.is != "" {
			out.WriteString(name.what + " " + name.is + ": ")
		}
	}
	out.WriteString(scrub(quoted.ReplaceAllString(refused.Message, `"…"`)))
	const longest = 300
	if reason := []rune(out.String()); len(reason) > longest {
		return string(reason[:longest]) + "…"
	}
	return out.String()
}

var (
	// The values in a message stand in quotes, and so do the names that the
	// reason gives apart.
	quoted = regexp.MustCompile(`(?s)".*"|'.*'|«.*»|“.*”`)
	// An address ends at a space or a quote.
	address = regexp.MustCompile(`(?i)\b[a-z][a-z0-9+.-]*://[^\s"'<>]+`)
	// A long run without a space of what tokens are made of.
	token = regexp.MustCompile(`[A-Za-z0-9+/=_.~-]{20,}`)
	// Ids look like tokens and are none.
	uuid = regexp.MustCompile(`^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$`)
	// So do times.
	instant = regexp.MustCompile(`^\d{4}-\d\d-\d\dT[\d:.]+(Z|[+-]\d\d:\d\d)$`)
)

// scrub takes addresses and whatever may be a token out of a text.
func scrub(text string) string {
	if instant.MatchString(text) {
		return text
	}
	text = address.ReplaceAllLiteralString(text, "[url]")
	return token.ReplaceAllStringFunc(text, func(found string) string {
		if uuid.MatchString(found) {
			return found
		}
		return "[redacted]"
	})
}
