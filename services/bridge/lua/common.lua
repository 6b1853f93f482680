-- What the scripts of the Redis log share; put before each of them. Keys of one user lie in one slot: {tag}.
--   s          stream: one entry per event, id <offset>-<time in ms>, fields i (event_id) and b (blob)
--   m          string: "<born> <epoch> <top> <due> <open> <at> <kept> <last>", where due is when the oldest entry
--              expires, open the number of unended runs, at the time of the entry at top (of the making when there is
--              none), kept when s and m were last given their time to live, last the event_id at top
--   r:<run>    hash: i = "<born> <fence> <first offset> <last offset> <sealed at ms or 0> <thread>", and a field
--              p:<producer> for each producer until the run is sealed
--   p:<id>     string: "<born> <last number> <run>"
-- `born` is drawn when m is made: a run or producer of an earlier m is as good as unknown, so that nothing goes on
-- silently when a part of a user's keys is lost.

-- How far a time to live may be behind, in ms: giving it anew at each append would cost a tenth of the append.
local SLACK = 60000

local function clock(given)
  if given ~= '' then return tonumber(given) end
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

local function int(n)
  return string.format('%d', n)
end

local function offset_of(id)
  return tonumber(string.match(id, '^(%d+)-'))
end

-- The newest entry that is really there: its offset, event_id and time; or 0, '' and 0.
local function newest(stream)
  local tail = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1]
  if not tail then return 0, '', 0 end
  local offset, at = string.match(tail[1], '^(%d+)-(%d+)$')
  return tonumber(offset), tail[2][2], tonumber(at)
end

-- What tells this writing of an entry from another one, also of the same event at the same offset; '' for none.
local function mark_of(event_id, at)
  if event_id == '' then return '' end
  return event_id .. ' ' .. int(at)
end

local function mark_at(stream, offset)
  local entry = redis.call('XRANGE', stream, offset, offset, 'COUNT', 1)[1]
  if not entry then return '', false end
  return entry[2][2] .. ' ' .. string.match(entry[1], '-(%d+)$'), entry[2][2]
end

-- A string's value; one of another type is as good as none, and is overwritten in time.
local function get(key)
  local packed = redis.pcall('GET', key)
  if type(packed) == 'table' then
    if string.find(packed.err, 'WRONGTYPE', 1, true) then return false end
    return redis.call('GET', key)
  end
  return packed
end

-- Of `m`, or nil when that is not there or is nothing that was written here: then it is another log that begins.
local function parse_meta(packed)
  if not packed then return nil end
  local born, epoch, top, due, open, at, kept, last =
    string.match(packed, '^(%x+) (%x+) (%d+) (%d+) (%d+) (%d+) (%d+) ([ -~]*)$')
  if not born or #epoch ~= 16 or math.max(#top, #due, #open, #at, #kept) > 15 then return nil end
  return {born = born, epoch = epoch, top = tonumber(top), due = tonumber(due), open = tonumber(open),
    at = tonumber(at), kept = tonumber(kept), last = last}
end

local function load_meta(stream, meta, fresh)
  local m = parse_meta(get(meta))
  if m then return m end
  local top, last, at = newest(stream)
  return {born = fresh, epoch = fresh, top = top, last = last, due = 0, open = 0, at = at, kept = 0, created = true}
end

-- Whether the times to live of s and m are to be given anew.
local function lapsing(m, now)
  return m.created or now - m.kept >= SLACK
end

local function pack_meta(m)
  return string.format('%s %s %d %d %d %d %d %s', m.born, m.epoch, m.top, m.due, m.open, m.at, m.kept, m.last)
end

local function save_meta(meta, m, now, ttl)
  if lapsing(m, now) then
    m.kept = now
    redis.call('SET', meta, pack_meta(m), 'PX', int(ttl + SLACK))
  else
    redis.call('SET', meta, pack_meta(m), 'KEEPTTL')
  end
end

-- Not by the length: nothing of ours removes entries but from the old end, but others may.
local function oldest_of(stream, top)
  local head = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
  if not head then return top + 1 end
  return math.max(1, math.min(offset_of(head[1]), top + 1))
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
