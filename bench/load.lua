-- The load of one measurement, for wrk: METHOD PATH IDS CONNECTION [BODY]. Where the path has
-- "ID", a thousand requests with random ids from 1 to IDS are made beforehand and sent in turn,
-- so that making them costs nothing while it counts. What came of it is one line of JSON.

local made, last = {}, 0

function init(args)
    local method, path, ids, connection, body = args[1], args[2], tonumber(args[3]), args[4], args[5]
    local headers = {}
    if connection == "close" then headers["Connection"] = "close" end
    if body then headers["Content-Type"] = "application/json" end
    for i = 1, path:find("ID") and 1000 or 1 do
        local one = path:gsub("ID", tostring(math.random(ids)))
        made[i] = wrk.format(method, one, headers, body)
    end
end

function request()
    last = last % #made + 1
    return made[last]
end

function done(summary, latency)
    local e = summary.errors
    io.write(string.format(
        '\n{"count": %d, "per_second": %f, "p50_ms": %f, "p99_ms": %f, "failed": %d}\n',
        summary.requests, summary.requests / summary.duration * 1e6,
        latency:percentile(50) / 1000, latency:percentile(99) / 1000,
        e.connect + e.read + e.write + e.status + e.timeout))
end
