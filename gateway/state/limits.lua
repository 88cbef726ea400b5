-- One Usage of one key. KEYS are the buckets, what runs where, what each replica has spent, and this one's last Seq and Call; ARGV are this replica's
-- name, the numbers that ask.numbers puts, and a Restore. Buckets are kept as the time, by Redis' clock in microseconds, at which they are full again.
-- What a replica has spent is day:in it:month:in it:ever:when it said so; of two that speak of the same, each part's greater one is true. "gone" is
-- what those have spent together that are silent, and "was:" and a replica what of it is that one's. Numbers have to be below 2^53.
--
-- A request may wait for this: numbers come and go packed, since each is read and written as text else, and what lives on is not said anew each time.
local call, max, floor, format = redis.call, math.max, math.floor, string.format
local rpm, tpm, conc, daily, monthly, ever, seq, requests, tokens, mine, minenano, sday, smonth, sinday, sinmon, stotal, told,
  parts, hasr, hask, hasrun, hasnano, answered, this, brief, seqfor, alivefor, spentfor, runningfor, backfor, at
  = struct.unpack("<dddddddddddddddddddddddddddddd", ARGV[2])
local me = ARGV[1]
local t = call("TIME")
local now = t[1] * 1000000 + t[2]
local minute = 60000000
local limited = daily > 0 or monthly > 0 or ever > 0
local shared = limited or conc > 0
local bucketed = rpm > 0 or tpm > 0

local others, reserved, before = 0, 0, 0
if shared then
  local all = call("HGETALL", KEYS[2])
  for i = 1, #all, 2 do
    local n, nano, ends = string.match(all[i + 1], "^(%d+):(%d+):(%d+)$")
    ends = tonumber(ends or 0)
    if all[i] == me then
      before = ends - runningfor
    elseif ends > now then
      others, reserved = others + tonumber(n), reserved + tonumber(nano)
    else
      call("HDEL", KEYS[2], all[i])
    end
  end
end

local function read(v)
  local a, b, c, d, e, f = string.match(v, "^(%d+):(%d+):(%d+):(%d+):(%d+):(%d+)$")
  if not f then return {0, 0, 0, 0, 0, 0} end
  return {tonumber(a), tonumber(b), tonumber(c), tonumber(d), tonumber(e), tonumber(f)}
end
local function wrote(e) return format("%.0f:%.0f:%.0f:%.0f:%.0f:%.0f", e[1], e[2], e[3], e[4], e[5], e[6]) end
local function merged(a, b)
  local e = {a[1], a[2], a[3], a[4], max(a[5], b[5]), max(a[6], b[6])}
  for w = 1, 3, 2 do
    if b[w] > e[w] then e[w], e[w + 1] = b[w], b[w + 1]
    elseif b[w] == e[w] then e[w + 1] = max(e[w + 1], b[w + 1]) end
  end
  return e
end
local book, stored, odd = {}, call("HGETALL", KEYS[3]), false
for i = 1, #stored, 2 do
  local who, e = stored[i], read(stored[i + 1])
  book[who] = e
  if string.sub(who, 1, 4) == "was:" then
    odd = odd or now - e[6] > backfor
  elseif who ~= "gone" and who ~= me then
    odd = odd or now - e[6] > alivefor
  end
end
local function put(who, e)
  e = book[who] and merged(book[who], e) or e
  book[who] = e
  call("HSET", KEYS[3], who, wrote(e))
end
local lost = told == 1 and not book[me] and not book["was:" .. me]
for who, v in string.gmatch(ARGV[3], "([^=;]+)=([^;]+)") do
  if who ~= me then put(who, read(v)) end
end
local was = book["was:" .. me]
if was and stotal > 0 then -- it was silent, and says it all again
  local g = book["gone"] or {0, 0, 0, 0, 0, now}
  for w = 1, 3, 2 do
    if g[w] == was[w] then g[w + 1] = max(0, g[w + 1] - was[w + 1]) end
  end
  g[5] = max(0, g[5] - was[5])
  book["gone"], book["was:" .. me] = g, nil
  call("HSET", KEYS[3], "gone", wrote(g))
  call("HDEL", KEYS[3], "was:" .. me)
  put(me, was)
end
if stotal > 0 then
  local e = book[me]
  if not e or e[1] ~= sday or e[3] ~= smonth or e[2] ~= sinday or e[4] ~= sinmon or e[5] ~= stotal or now - e[6] > alivefor / 100 then
    put(me, {sday, sinday, smonth, sinmon, stotal, now})
  end
  if not e or floor(e[6] / alivefor) ~= floor(now / alivefor) then call("EXPIRE", KEYS[3], spentfor) end
end
if odd or ARGV[3] ~= "" then
  local stale, old = {}, {}
  for who, e in pairs(book) do
    if string.sub(who, 1, 4) == "was:" then
      if now - e[6] > backfor then old[#old + 1] = who end
    elseif who ~= "gone" and now - e[6] > alivefor then stale[#stale + 1] = who end
  end
  for _, who in ipairs(old) do
    book[who] = nil
    call("HDEL", KEYS[3], who)
  end
  for _, who in ipairs(stale) do
    local g, e = book["gone"] or {0, 0, 0, 0, 0, now}, book[who]
    local sum = merged(g, e)
    for w = 1, 3, 2 do
      sum[w + 1] = (g[w] == sum[w] and g[w + 1] or 0) + (e[w] == sum[w] and e[w + 1] or 0)
    end
    sum[5] = g[5] + e[5]
    book["gone"], book[who] = sum, nil
    call("HSET", KEYS[3], "gone", wrote(sum))
    call("HDEL", KEYS[3], who)
    if now - e[6] <= backfor then put("was:" .. who, e) end
  end
end
local day, month, inday, inmon, total, list = sday, smonth, 0, 0, 0, ""
for who, e in pairs(book) do
  day, month = max(day, e[1]), max(month, e[3])
end
for who, e in pairs(book) do
  if string.sub(who, 1, 4) ~= "was:" then
    if e[1] == day then inday = inday + e[2] end
    if e[3] == month then inmon = inmon + e[4] end
    total = total + e[5]
  end
end
if brief == 0 then
  local said = {}
  for who, e in pairs(book) do said[#said + 1] = who .. "=" .. wrote(e) end
  list = table.concat(said, ";")
end

local r, k, r0, k0 = now, now, now, now
local lastseq = 0
if bucketed then
  local full = call("HMGET", KEYS[1], "requests", "tokens")
  r0, k0 = tonumber(full[1] or 0), tonumber(full[2] or 0)
  r, k = max(now, r0), max(now, k0)
  local counted = call("GET", KEYS[4])
  if counted then
    local lastcall, lastr, lastk
    lastseq, lastcall, lastr, lastk = struct.unpack("<dddd", counted)
    if lastcall > 0 and lastcall ~= answered then -- that call's answer did not come
      if rpm > 0 then r = max(now, r - lastr * minute / rpm) end
      if tpm > 0 then k = max(now, k - lastk * minute / tpm) end
    end
  end
  if seq > lastseq then
    if rpm > 0 then r = max(now, r + requests * minute / rpm) end
    if tpm > 0 then k = max(now, k + tokens * minute / tpm) end
  end
end
local verdicts = ""
local tookr, tookk = 0, 0
while at <= #ARGV[2] do
  local want, nano
  want, nano, at = struct.unpack("<dd", ARGV[2], at)
  local due = reserved + minenano + nano
  local v = 0
  if conc > 0 and others + mine >= conc then v = 1
  elseif rpm > 0 and r + minute / rpm - now > minute then v = 2
  elseif tpm > 0 and k + want * minute / tpm - now > minute then v = 3
  elseif ever > 0 and (total >= ever or total + due > ever) then v = 4
  elseif monthly > 0 and (inmon >= monthly or inmon + due > monthly) then v = 5
  elseif daily > 0 and (inday >= daily or inday + due > daily) then v = 6
  else
    if rpm > 0 then r = r + minute / rpm end
    if tpm > 0 then k = k + want * minute / tpm end
    mine, minenano = mine + 1, minenano + nano
    tookr, tookk = tookr + 1, tookk + want
  end
  verdicts = verdicts .. string.char(v)
end

-- of a limit that is large, a share that is worth the asking: a hundredth over all replicas
local function part(left, limit) return parts > 0 and max(0, floor(max(left / (2 * parts), math.min(left, limit / (100 * parts))))) or 0 end
local lentr, lentk, lentrun, lentnano = 0, 0, 0, 0
if rpm > 0 then
  lentr = part((now + minute - r) * rpm / minute + hasr, rpm) - hasr
  r = r + max(0, lentr) * minute / rpm
end
if tpm > 0 then
  lentk = part((now + minute - k) * tpm / minute + hask, tpm) - hask
  k = k + max(0, lentk) * minute / tpm
end
if conc > 0 then lentrun = part(conc - others - mine, conc) - hasrun end
if limited then
  local least, of = math.huge, 0
  if ever > 0 then least, of = ever - total, ever end
  if monthly > 0 and monthly - inmon < least then least, of = monthly - inmon, monthly end
  if daily > 0 and daily - inday < least then least, of = daily - inday, daily end
  lentnano = part(least - reserved - minenano, of) - hasnano
end

if bucketed then
  call("SET", KEYS[4], struct.pack("<dddd", max(seq, lastseq), this, tookr + max(0, lentr), tookk + max(0, lentk)), "EX", seqfor)
  if r ~= max(now, r0) or k ~= max(now, k0) then
    call("HSET", KEYS[1], "requests", format("%.2f", r), "tokens", format("%.2f", k))
    local ends = max(r, k)
    if floor(ends / minute) ~= floor(max(r0, k0) / minute) then call("PEXPIRE", KEYS[1], math.ceil((ends - now) / 1000) + 2 * 60000) end
  end
end
if shared then
  mine, minenano = mine + hasrun + max(0, lentrun), minenano + hasnano + max(0, lentnano)
  if mine > 0 or minenano > 0 then
    call("HSET", KEYS[2], me, format("%.0f:%.0f:%.0f", mine, minenano, now + runningfor))
    if floor(before / 20000000) ~= floor(now / 20000000) then call("PEXPIRE", KEYS[2], 60000) end
  elseif before > 0 then
    call("HDEL", KEYS[2], me)
  end
end
return struct.pack("<dddddddddddddd", math.ceil(r - now), math.ceil(k - now), others, reserved, day, inday, month, inmon, total, lost and 1 or 0,
  lentr, lentk, lentrun, lentnano) .. verdicts .. list
