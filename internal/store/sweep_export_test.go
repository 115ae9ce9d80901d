package store

// SweepReads gives the statements with which a round reads.
func SweepReads() []string { return []string{openSQL, openNowhereSQL} }

// SweepSettings are those of the store's connections that decide about plans.
func SweepSettings() []string {
	return []string{"enable_seqscan = off", "plan_cache_mode = force_generic_plan"}
}
