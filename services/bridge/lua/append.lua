-- EventLog.append for some appends, one after the other. KEYS: for each s, m, r:<run>, p:<producer>.
-- ARGV 1 now ms or '' for the server's, 2 max entries, 3 max age ms, 4 producer ttl ms, 5 idle ttl ms, 6 run ttl ms,
--   7 PUBLISH or SPUBLISH, 8 who appends; then for each append: how many arguments follow, fresh epoch, thread, run,
--   producer, fence, first number, last number, flags (t terminal, n notified, g gap declared), channel, the newest
--   position that the appender knows (epoch, offset, mark), event_id and blob of the gap, if declared, and of each event.
-- Gives for each: code, last number, epoch, first offset, events stored, the mark before them and the newest; or an
--   error, when nothing of it is in effect, which is of no consequence to the others. Codes: 0 taken, 1 GAP, 2 STALE_FENCE, 3 FENCE, 4 SEALED, 5 MISMATCH.
local now = clock(ARGV[1])
local max_entries, max_age = tonumber(ARGV[2]), tonumber(ARGV[3])
local producer_ttl, idle_ttl, run_ttl = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6]

-- One append: its keys come after KEYS[k], its arguments are ARGV[a + 1] to ARGV[b].
local function append(k, a, b)
  local stream, meta, run_key, producer_key = KEYS[k + 1], KEYS[k + 2], KEYS[k + 3], KEYS[k + 4]
  local fresh, thread, run_id, producer_id = ARGV[a + 1], ARGV[a + 2], ARGV[a + 3], ARGV[a + 4]
  local fence, first, flags = tonumber(ARGV[a + 5]), tonumber(ARGV[a + 6]), ARGV[a + 8]
  local events = a + 13
  local declared = string.find(flags, 'g', 1, true)
  local count = (b - events + 1) / 2
  if declared then count = count - 1 end

  local m = load_meta(stream, meta, fresh)

  local function tell()
    redis.call(ARGV[7], ARGV[a + 9], ARGV[8] .. ' ' .. m.epoch .. ' ' .. int(m.top) .. ' ' .. mark_of(m.last, m.at))
  end

  -- The appender has seen an entry that is not there: the log lost its tail, and its offsets will be used again.
  if not m.created and ARGV[a + 10] == m.epoch then
    local known = tonumber(ARGV[a + 11])
    if known > m.top or (known == m.top and ARGV[a + 12] ~= mark_of(m.last, m.at)) then
      m.epoch = fresh
      redis.call('SET', meta, pack_meta(m), 'KEEPTTL')
      tell()
    end
  end

  local run = load_run(run_key, stream, m, now, producer_ttl)
  local producer
  local packed = get(producer_key)
  if packed then
    local born, number, of_run = string.match(packed, '^(%x+) (%d+) (.*)$')
    -- A producer whose run is forgotten is forgotten too.
    if born == m.born and (of_run ~= run_id or (run and not run.ended)) then
      producer = {number = number, run = of_run}
    end
  end
  local through = producer and producer.number or '0'
  local last = tonumber(through)

  local function refuse(code)
    return {code, through, m.created and '' or m.epoch, 0, 0, '', ''}
  end

  local function save_run(ttl)
    local info = string.format('%s %s %d %d %d %s', m.born, run.fence, run.first, run.last, run.sealed, run.thread)
    redis.call('HSET', run_key, 'i', info)
    if ttl then redis.call('PEXPIRE', run_key, ttl) end
  end

  if string.find(flags, 'n', 1, true) and fence > (run and tonumber(run.fence) or 0) then return refuse(3) end
  if run then
    if fence < tonumber(run.fence) then return refuse(2) end
    if run.thread ~= thread or (producer and producer.run ~= run_id) then return refuse(5) end
  elseif producer then
    return refuse(5)
  end
  local known = last + 1 - first
  if known >= 0 and known >= count then
    if run and fence > tonumber(run.fence) then
      run.fence = ARGV[a + 5]
      save_run()
    end
    return {0, through, m.created and '' or m.epoch, 0, 0, '', ''}
  end
  if run and run.sealed > 0 then return refuse(4) end
  local from = events
  if known < 0 then
    if not declared then return refuse(1) end
    m.epoch = fresh
  else
    from = from + 2 * known
    if declared then from = from + 2 end
  end

  local function add(offset, at)
    return redis.pcall('XADD', stream, int(offset) .. '-' .. int(now), 'i', ARGV[at], 'b', ARGV[at + 1])
  end

  local done = add(m.top + 1, from)
  if type(done) == 'table' and done.err then
    if not string.find(done.err, 'equal or smaller', 1, true) then return done end
    -- The stream is ahead of what is known of it: nobody may take its entries for others.
    m.top, m.last, m.at = newest(stream)
    m.epoch = fresh
    done = add(m.top + 1, from)
    if type(done) == 'table' and done.err then return done end
  end
  local before, first_offset = mark_of(m.last, m.at), m.top + 1
  for at = from + 2, b, 2 do
    redis.call('XADD', stream, int(first_offset + (at - from) / 2) .. '-' .. int(now), 'i', ARGV[at], 'b', ARGV[at + 1])
  end
  local stored = (b - from + 1) / 2
  m.top, m.last, m.at = m.top + stored, ARGV[b - 1], now

  -- Not at each append, and a few at a time: that costs less.
  if math.floor(m.top / 32) ~= math.floor((first_offset - 1) / 32) and redis.call('XLEN', stream) > max_entries + 32 then
    redis.call('XTRIM', stream, 'MAXLEN', int(max_entries))
  end
  if now > m.due then
    local _
    _, m.due = expire(stream, now, max_age, 8)
  end
  if lapsing(m, now) then redis.call('PEXPIRE', stream, int(max_age + SLACK)) end

  if not run then
    run = {fence = ARGV[a + 5], first = first_offset, sealed = 0, thread = thread}
    m.open = m.open + 1
  elseif fence > tonumber(run.fence) then
    run.fence = ARGV[a + 5]
  end
  run.last = m.top
  redis.call('SET', producer_key, m.born .. ' ' .. ARGV[a + 7] .. ' ' .. run_id, 'PX', ARGV[5])
  if string.find(flags, 't', 1, true) then
    run.sealed = now
    m.open = math.max(0, m.open - 1)
    local prefix = string.sub(producer_key, 1, #producer_key - #producer_id)
    redis.call('PEXPIRE', producer_key, int(producer_ttl))
    -- Those beyond a thousand go with their own time.
    local fields = redis.call('HSCAN', run_key, 0, 'MATCH', 'p:*', 'COUNT', 1000)[2]
    for n = 1, #fields, 2 do
      redis.call('PEXPIRE', prefix .. string.sub(fields[n], 3), int(producer_ttl))
    end
    redis.call('DEL', run_key)
    save_run(run_ttl)
  else
    if not producer then redis.call('HSET', run_key, 'p:' .. producer_id, '') end
    save_run(ARGV[5])
  end
  save_meta(meta, m, now, idle_ttl)
  tell()
  return {0, ARGV[a + 7], m.epoch, first_offset, stored, before, mark_of(m.last, m.at)}
end

local replies, at = {}, 9
while at <= #ARGV do
  local size = tonumber(ARGV[at])
  -- A user's keys may be damaged, and the others' appends are not to suffer.
  local sound, reply = pcall(append, 4 * #replies, at, at + size)
  if not sound then
    -- A table from Redis 7 on, text before.
    reply = {err = type(reply) == 'table' and reply.err or 'ERR user_script ' .. tostring(reply)}
  end
  replies[#replies + 1] = reply
  at = at + size + 1
end
return replies
