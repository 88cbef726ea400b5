package cost

import (
	_ "time"

	_ "headrace/providers/fakecloud"
)
