package device

import (
	"io/fs"
	"os"
)

// HostLimit is how much memory the control group of this process may have; false if nothing limits it. host is
// the root folder of the machine; nil means the real one.
func HostLimit(host fs.FS) (bytes int64, limited bool) {
	if host == nil {
		host = os.DirFS("/")
	}
	bytes, _, limited = cgroupLimit(host)
	return bytes, limited
}
