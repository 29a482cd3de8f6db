-- Posts the lines of a file one after another, and prints what came of it as one line of JSON.

local requests = {}
local position = 0

function init(args)
  local headers = { ["Content-Type"] = "application/json" }
  for line in io.lines(args[1]) do
    requests[#requests + 1] = wrk.format("POST", nil, headers, line)
  end
end

function request()
  position = position % #requests + 1
  return requests[position]
end

function done(summary, latency, per_thread)
  local errors = summary.errors
  io.write(string.format('\n{"requests": %d, "seconds": %.6f, "bad": %d, "lost": %d, "p50_ms": %.3f}\n',
    summary.requests, summary.duration / 1e6, errors.status,
    errors.connect + errors.read + errors.write + errors.timeout, latency:percentile(50) / 1e3))
end
