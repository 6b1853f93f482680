-- What the scripts of the Redis log share; put before each of them. Keys of one user lie in one slot: {tag}.
--   s          stream: one entry per event, id <offset>-<time in ms>, fields i (event_id) and b (blob)
--   m          hash: born, epoch, top, last (event_id at top), due (when the oldest entry expires), open (unended runs),
--              touched
--   r:<run>    hash: i = "<born> <fence> <first offset> <last offset> <sealed at ms or 0> <thread>", and a field
--              p:<producer> for each producer until the run is sealed
--   p:<id>     string: "<born> <last number> <run>"
-- `born` is drawn when m is made: a run or producer of an earlier m is as good as unknown, so that nothing goes on
-- silently when a part of a user's keys is lost.

local function clock(given)
  if given ~= '' then return tonumber(given) end
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

local function int(n)
  return string.format('%.0f', n)
end

local function offset_of(id)
  return tonumber(string.match(id, '^(%d+)-'))
end

-- The newest entry that is really there: its offset and event_id, or 0 and ''.
local function newest(stream)
  local tail = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1]
  if not tail then return 0, '' end
  return offset_of(tail[1]), tail[2][2]
end

local function load_meta(stream, meta, fresh)
  local m = redis.call('HMGET', meta, 'born', 'epoch', 'top', 'last', 'due', 'open')
  if m[1] then
    return {born = m[1], epoch = m[2], top = tonumber(m[3]), last = m[4], due = tonumber(m[5]), open = tonumber(m[6])}
  end
  local top, last = newest(stream)
  return {born = fresh, epoch = fresh, top = top, last = last, due = 0, open = 0, created = true}
end

local function save_meta(meta, m, now, ttl)
  redis.call('HSET', meta, 'born', m.born, 'epoch', m.epoch, 'top', int(m.top), 'last', m.last, 'due', int(m.due),
    'open', int(m.open), 'touched', int(now))
  redis.call('PEXPIRE', meta, ttl)
end

-- No entry is ever removed but from the old end, so the length says where that is.
local function oldest_of(stream, top)
  return top - redis.call('XLEN', stream) + 1
end

-- Remove what is older than max_age, `rounds` times 64 entries at most; how many went, and when the next is due.
local function expire(stream, now, max_age, rounds)
  local before, cutoff = redis.call('XLEN', stream), now - max_age
  for _ = 1, rounds do
    local head = redis.call('XRANGE', stream, '-', '+', 'COUNT', 64)
    local keep
    for _, entry in ipairs(head) do
      local at = tonumber(string.match(entry[1], '-(%d+)$'))
      if at >= cutoff then
        if entry ~= head[1] then redis.call('XTRIM', stream, 'MINID', entry[1]) end
        return before - redis.call('XLEN', stream), at + max_age
      end
      keep = entry[1]
    end
    if not keep then return before, now + max_age end
    redis.call('XTRIM', stream, 'MINID', int(offset_of(keep) + 1))
  end
  return before - redis.call('XLEN', stream), now
end

-- A run as its key says; nil when it is unknown, of an earlier log, or ended so long ago that it is forgotten.
local function load_run(key, stream, m, now, producer_ttl)
  local packed = redis.call('HGET', key, 'i')
  if not packed then return nil end
  local born, fence, first, last, sealed, thread = string.match(packed, '^(%S+) (%d+) (%d+) (%d+) (%d+) (.*)$')
  if born ~= m.born then return nil end
  local run = {fence = fence, first = tonumber(first), last = tonumber(last), sealed = tonumber(sealed), thread = thread}
  run.ended = run.sealed > 0 and run.sealed < now - producer_ttl
  if run.ended and run.last < oldest_of(stream, m.top) then return nil end
  return run
end
