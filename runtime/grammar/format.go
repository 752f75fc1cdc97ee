package grammar

// Formats of strings as patterns. Where a specification and the common readers
// differ, a pattern keeps to what all of them take, so that some valid texts
// are not generated: no year 0, no leap second, no lower-case t and z.
var formats = func() map[string]string {
	const (
		year     = `(?:[1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])`
		leapYear = `(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)`
		date     = `(?:` + year + `-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))|` + leapYear + `-02-29)`
		clock    = `(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?`
		zone     = `(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])`
		octet    = `(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])`
		ipv4     = octet + `(?:\.` + octet + `){3}`
		hex      = `[0-9a-fA-F]{1,4}`
		label    = `[a-zA-Z0-9]{1,12}(?:-[a-zA-Z0-9]{1,12}){0,3}` // at most 51; no two hyphens in a row
		hostname = label + `(?:\.` + label + `){0,3}`             // at most 207
		domain   = label + `(?:\.` + label + `){0,2}\.[a-zA-Z]{2,12}`
		atom     = "[a-zA-Z0-9_+-]{1,20}"
		email    = atom + `(?:\.` + atom + `){0,2}@` + domain
		percent  = `%[0-9A-Fa-f]{2}`
		pathChar = `(?:[a-zA-Z0-9._~!$&'()*+,;=:@-]|` + percent + `)`
		uri      = `[a-z][a-z0-9+.-]{0,15}://(?:` + hostname + `|` + ipv4 + `)(?::[1-9][0-9]{0,3})?(?:/` + pathChar + `{0,64}){0,16}(?:\?(?:` + pathChar + `|[/?]){0,256})?(?:#(?:` + pathChar + `|[/?]){0,64})?`
		count    = `[0-9]{1,4}`
		duration = `P(?:` + count + `W|(?:` + count + `Y(?:` + count + `M(?:` + count + `D)?)?|` + count + `M(?:` + count + `D)?|` + count + `D)(?:T` + hms + `)?|T` + hms + `)`
		pointer  = `(?:/(?:[^~/\x00-\x1f\x7f]|~[01])*)*`
	)
	var ipv6 string
	for left := 0; left <= 7; left++ { // groups before ::, then fewer than 7 - left after
		if left > 0 {
			ipv6 += "|"
		}
		before := hex + `(?::` + hex + `){` + string(rune('0'+max(left-1, 0))) + `}`
		if left == 0 {
			before = ""
		}
		after := ""
		if left < 7 {
			after = `(?:` + hex + `(?::` + hex + `){0,` + string(rune('0'+6-left)) + `})?`
		}
		ipv6 += before + `::` + after
	}
	ipv6 += `|` + hex + `(?::` + hex + `){7}`
	return map[string]string{
		"date": date, "time": clock + zone, "date-time": date + `T` + clock + zone, "duration": duration,
		"uuid": `[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}`,
		"ipv4": ipv4, "ipv6": ipv6, "hostname": hostname, "idn-hostname": hostname, "email": email, "idn-email": email,
		"uri": uri, "uri-reference": uri, "iri": uri, "iri-reference": uri, "uri-template": uri,
		"json-pointer": pointer, "relative-json-pointer": `(?:0|[1-9][0-9]{0,3})(?:#|` + pointer + `)`,
	}
}()

const hms = `(?:[0-9]{1,4}H(?:[0-9]{1,4}M(?:[0-9]{1,4}S)?)?|[0-9]{1,4}M(?:[0-9]{1,4}S)?|[0-9]{1,4}S)`
